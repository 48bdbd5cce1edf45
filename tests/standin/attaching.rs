//! `start_or_attach`: starts the VM, or attaches to it if it runs already.

use std::sync::Barrier;

use hyperkit::{Console, Error, HyperKit, StartOrAttach};

use crate::common::{TEST_TIMEOUT, TestDir, hypervisors_in, start_vm};
use crate::starter::{self, Starter, report};

#[test]
fn one_of_many_threads_starts_and_the_others_attach() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    for _ in 0..5 {
        let all = Barrier::new(12);
        let results: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                let description = test_dir.description();
                all.wait();
                description.start_or_attach("guest").unwrap()
            };
            let threads: Vec<_> = (0..12).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let started = results.iter().filter(|result| matches!(result, StartOrAttach::Started(_))).count();
        assert_eq!((started, results.len()), (1, 12));
        let vms: Vec<_> = results.into_iter().map(StartOrAttach::into_vm).collect();
        assert_eq!(hypervisors_in(&test_dir.path("vm")), [vms[0].pid()]);
        for vm in &vms {
            assert_eq!(vm.pid(), vms[0].pid());
            vm.console().expect("the attached VM is not ready");
        }
        vms[0].kill().unwrap();
        let exits: Vec<_> = vms.iter().map(hyperkit::Vm::wait).collect();
        assert_eq!(exits, [hyperkit::Exit::Killed(9); 12], "the handles report different exits");
    }
}

#[test]
fn one_of_many_processes_starts_and_the_others_attach() {
    const TEST: &str = "attaching::one_of_many_processes_starts_and_the_others_attach";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let result = starter::description_in(&arguments[0]).start_or_attach("guest").unwrap();
        let how = if matches!(result, StartOrAttach::Started(_)) { "started" } else { "attached" };
        let vm = result.into_vm();
        vm.wait_for_console("Command line", TEST_TIMEOUT).unwrap();
        return report(format!("{how} {}", vm.pid()));
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let dir = test_dir.dir();
    let mut starters: Vec<_> = (0..10).map(|_| Starter::spawn(TEST, &[dir.to_str().unwrap()])).collect();
    let mut reports: Vec<_> = starters.iter_mut().map(Starter::report).collect();
    reports.sort();
    let pid = hypervisors_in(&test_dir.path("vm"))[0];
    let mut expected = vec![format!("attached {pid}"); 9];
    expected.push(format!("started {pid}"));
    assert_eq!(reports, expected);
}

#[test]
fn start_or_attach_ignores_the_description_if_the_vm_runs() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    // The VM runs, so the description of this call has no effect.
    let attached = test_dir.description().cpus(4).start_or_attach("another line").unwrap();
    assert!(matches!(&attached, StartOrAttach::Attached(_)));
    let attached = attached.into_vm();
    assert_eq!((attached.pid(), attached.description().cpus), (vm.pid(), 1));
    assert_eq!(attached.description(), &{
        let mut started = vm.description().clone();
        started.state_dir = Some(test_dir.path("vm"));
        started
    });
    vm.kill().unwrap();
    assert!(matches!(test_dir.description().start_or_attach("guest").unwrap(), StartOrAttach::Started(_)));
}

#[test]
fn failed_start_or_attach_is_an_error() {
    let test_dir = TestDir::new();
    let error = test_dir.description().start_or_attach("vmm.die-early=4").unwrap_err();
    assert!(matches!(error, Error::HypervisorFailed { exit: hyperkit::Exit::Failed(4), .. }), "{error:?}");
    let mut description = test_dir.description().console(Console::Pty);
    description.state_dir = None;
    assert_eq!(description.start_or_attach("guest").unwrap_err().violations().len(), 1);
    let missing = HyperKit::new().state_dir(test_dir.path("vm")).start_or_attach("guest").unwrap_err();
    assert!(!missing.violations().is_empty(), "{missing:?}");
}
