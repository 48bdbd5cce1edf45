//! Connects two VMs to each other, with fixed addresses.

use std::error::Error;
use std::time::Duration;

use hyperkit::{Disks, HyperKit, ScopedVm};

const TIMEOUT: Duration = Duration::from_secs(300);

/// Runs a script in the guest and returns what it prints.
fn run(vm: &ScopedVm, script: &str) -> Result<String, Box<dyn Error>> {
    let output = vm.command("sh").args(["-c", script]).agent_timeout(TIMEOUT).timeout(TIMEOUT).output()?;
    if !output.status.success() {
        return Err(format!("{script}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let template = HyperKit::new().kernel("vmlinuz").initrd("initrd.img").memory_mib(256).agent(true);
    // The VMs that name this directory are on one network, each with a different number.
    let start = |name: &str, number| {
        let description = template.clone().state_dir(format!("vms/{name}")).internal_network("vms/net", number);
        let console = description.engine()?.kernel_console();
        description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check"))
    };
    let (server, client) = (start("server", 1)?, start("client", 2)?);
    for (vm, address) in [(&server, "192.168.7.1/24"), (&client, "192.168.7.2/24")] {
        run(vm, &format!("ip addr add {address} dev eth0 && ip link set eth0 up"))?;
    }

    let greet = ["-c", "echo hello from the server | nc -l -p 7"];
    let mut greeter = server.command("sh").args(greet).timeout(TIMEOUT).spawn()?;
    let received = run(&client, "until nc 192.168.7.1 7; do sleep 0.2; done")?;
    print!("the client received: {received}");
    println!("the server's nc {}", greeter.wait()?);

    for vm in [server, client] {
        vm.kill()?;
        vm.remove(Disks::Delete)?;
    }
    Ok(())
}
