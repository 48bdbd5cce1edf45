//! A directory of the host as the guest's root: `Root::Dir`. Tests of `Root::Host` are in `host_root`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use hyperkit::{Error, Exit, GuestCommand, GuestStatus, HyperKit, NotStarted, Root, Vm};

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, compile_program, guest_file, open_shell, run_in_guest};
use crate::common::tools::run_tool;

/// Returns the guest's description with a root directory of the host.
pub fn with_root(description: &HyperKit, root: Root) -> HyperKit {
    description.clone().initrd(guest_file("host-root.img")).agent(true).root(root).memory_mib(1024)
}

pub fn command(vm: &Vm, program: &str) -> GuestCommand {
    let path = env::var_os("PATH").unwrap_or_default();
    vm.command(program).env("PATH", path).agent_timeout(BOOT_TIMEOUT).timeout(BOOT_TIMEOUT)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Creates a root directory with one program, which is statically linked, and nothing else.
fn create_root(dir: &Path) -> PathBuf {
    let root = dir.join("my root,%41");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(compile_program(dir), root.join("bin/program")).unwrap();
    root
}

#[test]
fn root_directory_needs_one_program_and_its_vm_is_found_again() {
    let guest = Guest::new();
    let root = create_root(guest.state_dir.parent().unwrap());
    fs::create_dir_all(root.join("out")).unwrap();
    let description = with_root(&guest.description, Root::Dir(root.clone())).share_dir(root.join("out"), "out");
    drop(description.start(QUIET_CMDLINE).unwrap());

    let found = HyperKit::from_state(&guest.state_dir).unwrap();
    assert_eq!(
        (&found.root, found.recorded_kernel_cmdline().as_deref()),
        (&Root::Dir(root.clone()), Some(QUIET_CMDLINE))
    );
    let vm = found.vm().unwrap().unwrap();
    let output = command(&vm, "program").args(["a", "b"]).env("PATH", "/bin").current_dir("/out").output().unwrap();
    assert_eq!(output.status, GuestStatus::Exited(0));
    assert!(text(&output.stdout).ends_with("[program]\n[a]\n[b]\n"), "{output:?}");
    let missing = command(&vm, "sh").output().unwrap_err();
    assert!(matches!(missing, Error::CommandNotStarted { reason: NotStarted::ProgramNotFound, .. }), "{missing:?}");
    fs::write(guest.state_dir.with_file_name("note"), "from the host").unwrap();
    vm.copy_in(guest.state_dir.with_file_name("note"), "/out/note").unwrap();
    vm.copy_in(guest.state_dir.with_file_name("note"), "/note").unwrap();
    assert_eq!(fs::read_to_string(root.join("out/note")).unwrap(), "from the host");
    assert!(!root.join("note").exists() && !root.join("proc").exists());
}

/// Creates `host-root.img` again, after shell commands have changed its content.
fn changed_initrd(dir: &Path, commands: &str) -> PathBuf {
    let (content, initrd) = (dir.join("content"), dir.join("changed.img"));
    let _ = fs::remove_dir_all(&content);
    fs::create_dir(&content).unwrap();
    let script = "gzip -dc \"$1\" | cpio --quiet -id && eval \"$3\" && find . | cpio --quiet -o -H newc >\"$2\"";
    let original = guest_file("host-root.img");
    run_tool(
        "sh",
        &["-ec".as_ref(), script.as_ref(), "sh".as_ref(), original.as_os_str(), initrd.as_ref(), commands.as_ref()],
        &content,
    );
    initrd
}

#[test]
fn root_that_cannot_be_mounted_ends_the_vm_and_the_error_says_why() {
    // The kernel of Debian 13 has some of these modules built in. This parameter leaves out the one whose function it names.
    let builtin = |function: &str| format!("{QUIET_CMDLINE} initcall_blacklist={function}");
    for (commands, cmdline, reason) in [
        (
            "rm modules/*-9pnet.ko",
            QUIET_CMDLINE,
            "cannot load /modules/18-9pnet_virtio.ko: the initrd lacks the module 9pnet",
        ),
        (
            "rm modules/*-overlay.ko",
            QUIET_CMDLINE,
            "cannot mount overlay on /root: the kernel lacks the module overlay",
        ),
        (
            "rm -f modules/*-virtio_console.ko",
            &builtin("virtio_console_init"),
            "the kernel lacks the module virtio_console",
        ),
        (
            "rm -f modules/*-virtio_pci.ko",
            &builtin("virtio_pci_driver_init"),
            "no device with the tag \"hyperkit-root\"; the kernel may lack the module virtio_pci",
        ),
        (
            "echo x >modules/19-9p.ko",
            QUIET_CMDLINE,
            "cannot load /modules/19-9p.ko: damaged, or a module of another kernel",
        ),
        ("touch '../my root,%41/dev'", QUIET_CMDLINE, "cannot mount devtmpfs on /dev: Not a directory"),
    ] {
        let guest = Guest::new();
        let dir = guest.state_dir.parent().unwrap();
        let root = create_root(dir);
        let description = with_root(&guest.description, Root::Dir(root)).initrd(changed_initrd(dir, commands));
        let error = command(&description.start(cmdline).unwrap(), "program").output().unwrap_err();
        assert!(matches!(error, Error::VmExited { exit: Exit::PowerOff, .. }), "{commands}: {error:?}");
        assert!(error.to_string().contains(reason), "{commands}: {error}");
    }
}

#[test]
fn mismatch_of_initrd_and_root_is_reported() {
    let guest = Guest::new();
    let root = create_root(guest.state_dir.parent().unwrap());
    let target = root.join("new");
    let description = with_root(&guest.description, Root::Dir(root)).initrd(guest_file("initrd.img"));
    let vm = description.start(QUIET_CMDLINE).unwrap();
    vm.wait_for_console("this initrd does not mount it; use host-root.img", BOOT_TIMEOUT).unwrap();
    // QEMU refuses to write, whatever the guest does.
    let console = open_shell(&vm);
    let write = "mount -t 9p -o trans=virtio,version=9p2000.L hyperkit-root /mnt && touch";
    let answer = run_in_guest(&console, &format!("{write} /mnt/new"));
    assert!(answer.contains("Read-only file system") && !target.exists(), "{answer}");
    vm.kill().unwrap();
    let vm = with_root(&guest.description, Root::Initrd).start(QUIET_CMDLINE).unwrap();
    let error = command(&vm, "true").output().unwrap_err();
    assert!(error.to_string().contains("has no hyperkit.root; set `root`"), "{error}");
}
