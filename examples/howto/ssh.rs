//! Boots a distribution's cloud image and runs a command in it by ssh: `ssh IMAGE [COMMAND]`.

use std::error::Error;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use hyperkit::{Disk, HyperKit, Network, PortForward};

const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd"; // from Debian's package ovmf
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);

/// What cloud-init does at the first boot. The host key is installed, so that ssh knows it.
fn user_data(user_key: &str, host_key: &str, host_public_key: &str) -> String {
    let host_key = host_key.replace('\n', "\n    ");
    format!(
        "#cloud-config
users:
  - name: me
    shell: /bin/bash
    sudo: 'ALL=(ALL) NOPASSWD:ALL'
    ssh_authorized_keys:
      - {user_key}
ssh_genkeytypes: []
ssh_keys:
  ed25519_private: |
    {host_key}
  ed25519_public: {host_public_key}
"
    )
}

/// How ssh reaches the guest. Outside of this program, too: `ssh -F cloud/ssh_config guest`.
fn ssh_config(port: u16) -> String {
    format!(
        "Host guest
HostName 127.0.0.1
Port {port}
User me
IdentityFile cloud/user
IdentitiesOnly yes
HostKeyAlias guest
UserKnownHostsFile cloud/known_hosts
StrictHostKeyChecking yes
BatchMode yes
ConnectTimeout 10
"
    )
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let image = args.next().ok_or("which image? ssh IMAGE [COMMAND]")?;
    let command = args.next().unwrap_or("uname -a".into());

    // The guest writes to its disk, so it gets a copy. Most images have the format qcow2.
    fs::create_dir_all("cloud/seed")?;
    run("qemu-img", &["convert", "-O", "raw", &image, "cloud/disk.img"])?;
    for key in ["cloud/user", "cloud/host"] {
        if !fs::exists(key)? {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key])?;
        }
    }
    let read = |path| fs::read_to_string(path).map(|text| text.trim_end().to_owned());
    let host_public_key = read("cloud/host.pub")?;
    fs::write("cloud/known_hosts", format!("guest {host_public_key}\n"))?;
    let user_data = user_data(&read("cloud/user.pub")?, &read("cloud/host")?, &host_public_key);
    fs::write("cloud/seed/user-data", user_data)?;
    fs::write("cloud/seed/meta-data", "instance-id: guest-1\nlocal-hostname: guest\n")?;
    let seed = "cloud/seed.iso";
    run("genisoimage", &["-quiet", "-V", "CIDATA", "-J", "-r", "-o", seed, "cloud/seed"])?;

    let vm = HyperKit::new()
        .state_dir("cloud/vm")
        .bootrom(FIRMWARE)
        .memory_mib(1024)
        .disk(Disk::raw("cloud/disk.img").size_mib(4096)) // grows to 4 GiB
        .disk(Disk::raw(seed).read_only())
        .network(Network::Nat)
        .port_forward(PortForward::tcp(0, 22))
        .start_scoped("")?;
    let port = vm.host_port(22)?.ok_or("port 22 is not forwarded")?;
    fs::write("cloud/ssh_config", ssh_config(port))?;
    let deadline = Instant::now() + BOOT_TIMEOUT;
    let output = loop {
        let output = Command::new("ssh").args(["-F", "cloud/ssh_config", "guest", &command]).output()?;
        // 255 is ssh's own status, for instance while the guest boots. Others are the command's.
        if output.status.code() != Some(255) {
            break output;
        }
        if Instant::now() > deadline || vm.try_wait().is_some() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{reason}; {}", vm.log_tail()).into());
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", vm.shutdown(Duration::from_secs(120))?);
    fs::remove_dir_all("cloud")?;
    Ok(())
}

fn run(program: &str, args: &[&str]) -> Result<(), Box<dyn Error>> {
    let status = Command::new(program).args(args).status();
    let status = status.map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}").into()) }
}
