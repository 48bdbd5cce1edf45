//! The agent in a distribution: Debian with systemd, and the unit of the guide's page `agent`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hyperkit::{Disk, HyperKit};

use crate::common::guest::{BOOT_TIMEOUT, Guest, guest_file, setup_file};
use crate::common::platform::PLATFORM;

/// On a host with a load of 20, the boot took 200 s.
const DEBIAN_TIMEOUT: Duration = BOOT_TIMEOUT.saturating_mul(3);

/// Returns the text block of the guide's page that begins with a line.
fn block_of_page(first_line: &str) -> String {
    let page = include_str!("../../src/guide/agent.md");
    let start = page.find(&format!("```text\n{first_line}\n")).unwrap() + "```text\n".len();
    page[start..start + page[start..].find("```").unwrap()].to_owned()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Follows the page, and never writes to the image that `examples/setup.sh` has made.
#[test]
fn systemd_starts_the_agent_by_the_unit_of_the_page() {
    let guest = Guest::new();
    let dir = guest.state_dir.parent().unwrap();
    let image = setup_file("target/cloud-image", "disk.qcow2");
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&image, &dir.join("disk.img")]));
    fs::copy(guest_file("hyperkit-agent"), dir.join("hyperkit-agent")).unwrap();
    fs::write(dir.join("hyperkit-agent.service"), block_of_page("[Unit]")).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let script = block_of_page("# the start of the root file system in the image, in bytes");
    run(Command::new("sh").args(["-ec", &script]).current_dir(dir).env("PATH", path));

    let rom = Path::new(PLATFORM.uefi);
    let description = HyperKit::new().hyperkit(PLATFORM.qemu).state_dir(&guest.state_dir).memory_mib(512);
    let description = description.bootrom(rom).disk(Disk::raw(dir.join("disk.img"))).agent(true);
    let vm = description.start("").unwrap();
    let begun = Instant::now();
    let unit = vm.command("systemctl").args(["is-active", "hyperkit-agent"]).agent_timeout(DEBIAN_TIMEOUT).output();
    assert_eq!(unit.unwrap().stdout, b"active\n");
    println!("answered {:?} after the start", begun.elapsed());
    let release = vm.command("sh").args(["-c", ". /etc/os-release; echo $ID; id -u"]).output().unwrap();
    assert_eq!(release.stdout, b"debian\n0\n");
    // A daemon of a command survives a restart of the agent, which ends the command that restarts it.
    let daemon = vm.command("sh").args(["-c", "setsid sleep 1001 >/dev/null 2>&1 &"]).status().unwrap();
    assert!(daemon.success());
    let _ = vm.command("systemctl").args(["restart", "hyperkit-agent"]).status();
    println!("restarted after {:?}", begun.elapsed());
    let left = vm.command("pgrep").args(["-fx", "sleep 1001"]).agent_timeout(DEBIAN_TIMEOUT).status().unwrap();
    assert!(left.success());
}
