//! Boots a distribution's cloud image and runs a command in it by ssh: `ssh IMAGE [COMMAND]`.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hyperkit::{Disk, HyperKit, Network, PortForward};

/// Copy of the image, seed, keys and state directory. Deleted at the end.
const DIR: &str = "cloud";
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd"; // from Debian's package ovmf
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);

fn main() -> Result<(), Box<dyn Error>> {
    let image = std::env::args_os().nth(1).ok_or("which image? ssh IMAGE [COMMAND]")?;
    let command = std::env::args().nth(2).unwrap_or("uname -a".into());
    let dir = Path::new(DIR);
    fs::create_dir_all(dir.join("seed"))?;

    // The guest writes to its disk, so it gets a copy. Images are often in qcow2 format; this makes raw of any.
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&image).arg(dir.join("disk.img")))?;
    let (_, user_public) = create_key(&dir.join("user"))?;
    let (host_private, host_public) = create_key(&dir.join("host"))?;
    fs::write(dir.join("known_hosts"), format!("guest {host_public}\n"))?;
    fs::write(dir.join("seed/meta-data"), "instance-id: guest-1\nlocal-hostname: guest\n")?;
    let user_data = format!(
        "#cloud-config
users:
  - name: me
    shell: /bin/bash
    sudo: 'ALL=(ALL) NOPASSWD:ALL'
    ssh_authorized_keys:
      - {user_public}
ssh_genkeytypes: []
ssh_keys:
  ed25519_private: |
    {}
  ed25519_public: {host_public}
",
        host_private.replace('\n', "\n    ")
    );
    fs::write(dir.join("seed/user-data"), user_data)?;
    let seed = dir.join("seed.iso");
    run(Command::new("genisoimage")
        .args(["-quiet", "-V", "CIDATA", "-J", "-r", "-o"])
        .args([&seed, &dir.join("seed")]))?;

    let vm = HyperKit::new()
        .state_dir(dir.join("vm"))
        .bootrom(FIRMWARE)
        .memory_mib(1024)
        .disk(Disk::raw(dir.join("disk.img")).size_mib(4096)) // grows to 4 GiB
        .disk(Disk::raw(seed).read_only())
        .network(Network::Nat)
        .port_forward(PortForward::tcp(0, 22))
        .start_scoped("")?;
    let port = vm.host_port(22)?.ok_or("port 22 is not forwarded")?;
    let deadline = Instant::now() + BOOT_TIMEOUT;
    let output = loop {
        let output = ssh(dir, port).arg(&command).output()?;
        // 255 is ssh's own status, here as long as the guest boots. All others are the command's.
        if output.status.code() != Some(255) {
            break output;
        }
        if Instant::now() > deadline || vm.try_wait().is_some() {
            return Err(format!("{}; {}", String::from_utf8_lossy(&output.stderr), vm.log_tail()).into());
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{}", vm.shutdown(Duration::from_secs(120))?);
    fs::remove_dir_all(dir)?;
    Ok(())
}

/// An ssh command whose host key is checked against the one in the seed.
fn ssh(dir: &Path, port: u16) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "StrictHostKeyChecking=yes"]);
    ssh.args(["-o", "HostKeyAlias=guest", "-o", &format!("UserKnownHostsFile={}", dir.join("known_hosts").display())]);
    ssh.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(dir.join("user"));
    ssh.args(["-p", &port.to_string(), "me@127.0.0.1"]);
    ssh
}

/// Creates a key pair, the private key in `path`. Returns both as text.
fn create_key(path: &Path) -> Result<(String, String), Box<dyn Error>> {
    if !path.exists() {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path))?;
    }
    let public = fs::read_to_string(path.with_extension("pub"))?;
    Ok((fs::read_to_string(path)?, public.trim_end().to_owned()))
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.status().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
