//! Finds the machine that another program has started, stops it and removes it.

use hyperkit::HyperKit;

fn main() -> hyperkit::Result<()> {
    let dir = std::env::args().nth(1).expect("DIR");
    let machine = HyperKit::from_state(dir)?;
    assert!(machine.is_running());
    println!("{}", machine.pid.unwrap());
    machine.stop()?;
    assert!(!machine.is_running());
    machine.remove(false)
}
