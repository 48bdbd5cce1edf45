//! The exit of a VM as a future and as a descriptor.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use hyperkit::{Exit, Exited, HyperKit, Vm};

use crate::common::{TEST_TIMEOUT, TestDir, start_vm};
use crate::starter;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// Returns the running VM of a state directory.
fn find(test_dir: &TestDir) -> Vm {
    HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap()
}

/// A waker that sends its name.
struct Named(&'static str, Mutex<mpsc::Sender<&'static str>>);

impl Wake for Named {
    fn wake(self: Arc<Self>) {
        let _ = self.1.lock().unwrap().send(self.0);
    }
}

/// Returns a function that creates a waker with a name, and the channel to which the woken wakers send their names.
fn wakers() -> (impl Fn(&'static str) -> Waker, mpsc::Receiver<&'static str>) {
    let (send, woken) = mpsc::channel();
    (move |name| Arc::new(Named(name, Mutex::new(send.clone()))).into(), woken)
}

fn poll(exited: &mut Exited, waker: &Waker) -> Poll<Exit> {
    Pin::new(exited).poll(&mut Context::from_waker(waker))
}

#[test]
fn future_completes_for_a_vm_of_this_process() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    runtime().block_on(async {
        let exited = tokio::spawn(vm.exited());
        tokio::task::yield_now().await;
        assert!(!exited.is_finished());
        vm.kill().unwrap();
        assert_eq!(exited.await.unwrap(), Exit::Killed(9));
        assert_eq!(vm.exited().await, Exit::Killed(9), "a future that is created after the exit");
    });
}

#[test]
fn future_reports_how_the_guest_ended() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    vm.wait_for_console("Command line", TEST_TIMEOUT).unwrap();
    let exited = vm.exited();
    rustix::process::kill_process(crate::common::to_pid(vm.pid()), rustix::process::Signal::TERM).unwrap();
    assert_eq!(runtime().block_on(exited), Exit::PowerOff);
}

#[test]
fn future_completes_for_a_vm_of_another_process() {
    const TEST: &str = "exited::future_completes_for_a_vm_of_another_process";
    if let Some(arguments) = starter::arguments_of(TEST) {
        return starter::start(&arguments);
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let pid = starter::start_elsewhere(TEST, &test_dir.dir(), "guest");
    let vm = find(&test_dir);
    assert_eq!(vm.pid(), pid);
    runtime().block_on(async {
        let exited = tokio::spawn(vm.exited());
        tokio::task::yield_now().await;
        assert!(!exited.is_finished());
        vm.kill().unwrap();
        assert_eq!(exited.await.unwrap(), Exit::Unknown);
        assert_eq!(vm.exited().await, Exit::Unknown, "a future that is created after the exit");
    });
}

/// This process started ten of the VMs, and another process the other ten.
#[cfg(target_os = "linux")]
#[test]
fn twenty_futures_need_one_thread_together() {
    const TEST: &str = "exited::twenty_futures_need_one_thread_together";
    let dir = |test_dir: &TestDir, index: usize| test_dir.path(&format!("vm{index}"));
    if let Some(arguments) = starter::arguments_of(TEST) {
        let description = starter::description_in(&arguments[0]);
        let dirs = (10..20).map(|index| std::path::Path::new(&arguments[0]).join(format!("vm{index}")));
        dirs.for_each(|dir| drop(description.clone().state_dir(dir).start("guest").unwrap()));
        return starter::report("started");
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    crate::common::child_process::in_child_process(TEST, || {
        let test_dir = TestDir::new();
        let _stops: Vec<_> = (0..20).map(|index| crate::common::StopOnDrop(dir(&test_dir, index))).collect();
        let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
        assert_eq!(starter.report(), "started");
        starter.wait();
        let template = test_dir.description();
        let mut vms: Vec<_> =
            (0..10).map(|index| template.clone().state_dir(dir(&test_dir, index)).start("guest").unwrap()).collect();
        vms.extend((10..20).map(|index| HyperKit::from_state(dir(&test_dir, index)).unwrap().vm().unwrap().unwrap()));
        let before = threads();
        runtime().block_on(async {
            let exits: Vec<_> = vms.iter().map(|vm| tokio::spawn(vm.exited())).collect();
            tokio::task::yield_now().await;
            assert!(exits.iter().all(|exited| !exited.is_finished()));
            assert!(threads() <= before + 1, "{before} threads before, then {}", threads());
            vms.iter().for_each(|vm| vm.kill().unwrap());
            for (index, exited) in exits.into_iter().enumerate() {
                let exit = if index < 10 { Exit::Killed(9) } else { Exit::Unknown };
                assert_eq!(exited.await.unwrap(), exit, "{index}");
            }
        });
        crate::common::wait_until("the threads have exited", || threads() <= 2);
    });
}

/// Drops one future, moves another one to a new thread, and polls a third one twice. Then checks which wakers the exit
/// wakes.
///
/// For a VM that another process started, the crate keeps the wakers in another place.
fn check_wakers(test_dir: &TestDir, vm: &Vm) {
    let (waker, woken) = wakers();
    // A dropped future is not woken.
    let mut dropped = vm.exited();
    assert_eq!(poll(&mut dropped, &waker("dropped")), Poll::Pending);
    drop(dropped);
    // The exit wakes only the last waker with which a future was polled, from whichever thread.
    let mut moved = vm.exited();
    assert_eq!(poll(&mut moved, &waker("old")), Poll::Pending);
    let new = waker("new");
    let mut moved = std::thread::spawn(move || {
        assert_eq!(poll(&mut moved, &new), Poll::Pending);
        moved
    })
    .join()
    .unwrap();
    let mut other = vm.exited();
    assert_eq!(poll(&mut other, &waker("other")), Poll::Pending);
    assert_eq!(poll(&mut other, &waker("other")), Poll::Pending, "the future is polled again before it was woken");

    test_dir.description().stop().unwrap();
    let mut names: Vec<_> = (0..2).map(|_| woken.recv_timeout(TEST_TIMEOUT).unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["new", "other"]);
    assert!(matches!(poll(&mut moved, Waker::noop()), Poll::Ready(_)));
    assert!(matches!(poll(&mut other, Waker::noop()), Poll::Ready(_)));
    assert!(matches!(poll(&mut vm.exited(), Waker::noop()), Poll::Ready(_)));
    assert_eq!(woken.try_recv(), Err(mpsc::TryRecvError::Empty));
}

#[test]
fn futures_can_be_dropped_polled_again_and_moved() {
    const TEST: &str = "exited::futures_can_be_dropped_polled_again_and_moved";
    if let Some(arguments) = starter::arguments_of(TEST) {
        return starter::start(&arguments);
    }
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    check_wakers(&test_dir, &vm);
    starter::start_elsewhere(TEST, &test_dir.dir(), "guest");
    check_wakers(&test_dir, &find(&test_dir));
}

/// A waker that panics, without a message on stderr.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("as requested"));
    }
}

/// A waker that polls its future and sends the result.
struct Polls(Mutex<Option<Exited>>, Mutex<mpsc::Sender<Poll<Exit>>>);

impl Wake for Polls {
    fn wake(self: Arc<Self>) {
        let mut exited = self.0.lock().unwrap().take().unwrap();
        let _ = self.1.lock().unwrap().send(poll(&mut exited, Waker::noop()));
    }
}

fn check_wakers_that_panic_or_poll(test_dir: &TestDir, vm: &Vm, exit: Exit) {
    let mut panics = vm.exited();
    assert_eq!(poll(&mut panics, &Arc::new(Panics).into()), Poll::Pending);
    let (send, polled) = mpsc::channel();
    let polls = Arc::new(Polls(Mutex::new(None), Mutex::new(send)));
    let mut exited = vm.exited();
    assert_eq!(poll(&mut exited, &polls.clone().into()), Poll::Pending);
    *polls.0.lock().unwrap() = Some(exited);
    test_dir.description().stop().unwrap();
    assert_eq!(polled.recv_timeout(TEST_TIMEOUT), Ok(Poll::Ready(exit)));
    assert_eq!(poll(&mut panics, Waker::noop()), Poll::Ready(exit));
}

/// Wakers are code of the embedding program.
#[test]
fn waker_that_panics_or_polls_does_not_prevent_others_from_waking() {
    const TEST: &str = "exited::waker_that_panics_or_polls_does_not_prevent_others_from_waking";
    if let Some(arguments) = starter::arguments_of(TEST) {
        return starter::start(&arguments);
    }
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    check_wakers_that_panic_or_poll(&test_dir, &vm, Exit::Killed(9));
    for _ in 0..2 {
        starter::start_elsewhere(TEST, &test_dir.dir(), "guest");
        check_wakers_that_panic_or_poll(&test_dir, &find(&test_dir), Exit::Unknown);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn descriptor_is_readable_after_the_exit() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    const TEST: &str = "exited::descriptor_is_readable_after_the_exit";
    if let Some(arguments) = starter::arguments_of(TEST) {
        return starter::start(&arguments);
    }
    let is_readable = |vm: &Vm, timeout| poll(&mut [PollFd::new(vm, PollFlags::IN)], timeout).unwrap() > 0;
    let check = |vm: &Vm| {
        assert!(!is_readable(vm, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| is_readable(vm, None));
            vm.kill().unwrap();
            assert!(waiting.join().unwrap());
        });
        assert!(is_readable(vm, None), "the descriptor is not readable after the exit");
    };
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    check(&vm);
    starter::start_elsewhere(TEST, &test_dir.dir(), "guest");
    check(&find(&test_dir));
}

#[test]
fn future_is_send_static_and_unpin() {
    fn check<T: Future<Output = Exit> + Send + Sync + Unpin + 'static>(_: &T) {}
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let mut exited = vm.exited();
    check(&exited);
    assert_eq!(poll(&mut exited, Waker::noop()), Poll::Pending);
    drop(vm);
    test_dir.description().stop().unwrap();
    assert_eq!(runtime().block_on(exited), Exit::Killed(9), "the future does not outlive the handle");
}
