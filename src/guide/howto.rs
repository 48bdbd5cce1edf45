//! How do I …: short answers, each with a complete program.
//!
//! - [test in a VM](#test-in-a-vm)
//! - [talk to the guest](#talk-to-the-guest)
//! - [run a command in the guest](#run-a-command-in-the-guest)
//! - [run the host's programs in a guest](#run-the-hosts-programs-in-a-guest)
//! - [share a directory with the guest](#share-a-directory)
//! - [throw away what a VM writes to its disk](#throw-away-what-a-vm-writes)
//! - [reach a port of the guest](#reach-a-port-of-the-guest)
//! - [connect VMs to each other](#connect-vms-to-each-other)
//! - [ssh into a cloud image](#ssh-into-a-cloud-image)
//! - [use this crate from tokio](#use-it-from-tokio)
//! - [keep a VM across restarts of my program](#keep-a-vm-across-restarts)
//! - [boot a kernel of my own](#boot-a-kernel-of-your-own)
//! - [see why a VM did not start](#see-why-it-did-not-start)
//!
//! The programs are the files of `examples/howto` in the repository, and run in its tests. Each one compiles in a crate of yours
//! that depends on `hyperkit`. They read `vmlinuz` and `initrd.img` in the current directory, and create their state directory
//! there. Four differ: the tests read environment variables, `host_programs` reads `host-root.img`, `ssh` boots
//! a disk, and `kernel` creates an initrd.
//! `examples/setup.sh` puts a small guest into `target/guest`, so `howto-talk` runs with `cd target/guest && cargo run --example
//! howto-talk`.
//!
//! On the kernel command lines, `console=` makes the kernel print to the port that the crate reads. The name of that port depends on the
//! guest's architecture, so [`kernel_console`](crate::Engine::kernel_console) returns it. `quiet` leaves out most of the kernel's
//! messages, `panic=1` ends the VM a second after a kernel panic, and `no_timer_check` avoids a panic of an x86 kernel that is emulated
//! on a busy host. The timeouts are long, since an emulated guest on a busy host may need a minute to boot.
//!
//! # Test in a VM
//! To run existing tests in a VM without changing them, see the page [`tests_in_a_vm`](super::tests_in_a_vm). To start VMs in
//! your tests, and test them from outside, read on.
//!
//! With the harness below, a test that starts a VM and runs a program in it has five lines, like `guest_sees_its_vcpus`. The harness's
//! `run` waits until the guest has booted, by [`agent_timeout`](crate::GuestCommand::agent_timeout), and fails the test if the program
//! fails. For anything else, such as a status or a stream, the harness's VM has all methods of [`Vm`](crate::Vm):
//! [`command`](crate::Vm::command), [`copy_in`](crate::Vm::copy_in), [`shutdown`](crate::Vm::shutdown).
//!
//! | what | how |
//! |---|---|
//! | tests run in parallel | Each test has a VM with a state directory and disks of its own. |
//! | a test returns, fails or panics | The VM is killed, and its state directory is deleted. |
//! | a test fails | The message has the guest's console and the hypervisor's output. |
//! | `^C`, SIGTERM, SIGHUP or SIGKILL ends the test process | The VMs are killed, by [`start_scoped`](crate::HyperKit::start_scoped). Their state directories stay in `target/tmp/vms`, and the next run of the test deletes them. |
//! | a program in the guest hangs | It is killed after its [`timeout`](crate::GuestCommand::timeout), and the test fails. |
//!
//! Copy both files below: the tests to `tests/vm/main.rs` in your crate, the harness to `tests/vm/harness.rs`. The
//! harness reads the paths of kernel and initrd from two variables. The files of `target/guest` in the repository will do:
//! `VM_KERNEL=…/vmlinux VM_INITRD=…/initrd.img cargo test -- --test-threads=4`. On hyperkit, the kernel is `vmlinuz`, which an
//! emulated CPU boots 2 s later.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/vm_tests.rs"), "```"))]
//! The harness:
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/harness.rs"), "```"))]
//! # Talk to the guest
//! [`Vm::console`](crate::Vm::console) is the guest's first serial port as a stream, which begins when you open it. Before you
//! open it, wait for the prompt with [`wait_for_console`](crate::Vm::wait_for_console): a shell that is not ready loses what is
//! typed, and the stream does not contain a prompt that came before. The guest ends lines with `\r\n`. It echoes what you type,
//! so your command is in the stream, too. To find the output, send `echo :be''gin:; COMMAND; echo :e''nd:`. The shell removes the
//! quotes, so only the real output contains `:begin:` and `:end:`. Some shells also print `\x1b[6n` before a prompt, which asks a
//! terminal for the position of its cursor. Ignore it. The guest blocks while an open console is not read. For binary data or
//! several connections, use a [TCP port](#reach-a-port-of-the-guest) or vsock ([`Vm::vsock_connect`](crate::Vm::vsock_connect)):
//! sockets between host and guest that need no network.
//!
//! In the guest, a shell or another program must run on that port: `ttyS0`, or `ttyAMA0` in an arm64 guest.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/talk.rs"), "```"))]
//! # Run a command in the guest
//! [`Vm::command`](crate::Vm::command) executes a program in the guest, in the manner of [`std::process::Command`]. Its standard
//! streams are binary, its exit status is known, and any number of commands run at once. [`copy_in`](crate::Vm::copy_in) and
//! [`copy_out`](crate::Vm::copy_out) copy files and directories. Neither needs a network, ssh or a console. It works
//! also after your program has found the VM again with [`from_state`](crate::HyperKit::from_state).
//!
//! The description needs [`agent(true)`](crate::HyperKit::agent), on hyperkit also [`vsock(true)`](crate::HyperKit::vsock), and the guest
//! must run the agent. The guest in `target/guest` does. For another guest, [put the agent into its image](super::agent). The first command
//! waits until the agent answers, so there is no need to wait for the boot; its [`agent_timeout`](crate::GuestCommand::agent_timeout)
//! limits that.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/command.rs"), "```"))]
//! # Run the host's programs in a guest
//! With [`Root::Host`](crate::Root::Host) the guest's root is the host's root directory, and commands are the host's programs: dynamically
//! linked ones, scripts of any interpreter, shell pipelines. The guest can read what your user can read. What it writes stays in its
//! memory, except in directories that you share. The page [`host_programs`](super::host_programs) says what works and what is different.
//! The initrd is `host-root.img`, which is also in `target/guest`. The host must be Linux, the engine must be QEMU, and the guest must
//! have the host's architecture.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/host_programs.rs"), "```"))]
//! # Share a directory
//! [`share_dir`](crate::HyperKit::share_dir) shares a directory of the host under a tag. It uses 9p, a network file system, over
//! a virtio device, so the guest needs no network. QEMU serves the directory with the rights of your user, and the guest can
//! write whatever you can. `share_dir` works only on QEMU. On hyperkit, run a 9p server yourself, and pass its socket to
//! [`socket_9p`](crate::HyperKit::socket_9p).
//!
//! In the guest, run this line, in which `files` is the tag:
//!
//! ```text
//! mount -t 9p -o trans=virtio,version=9p2000.L files /mnt
//! ```
//!
//! The guest's kernel needs `9pnet_virtio` and `9p`, as modules or built in. Debian's `linux-image-amd64` has them, its
//! `linux-image-cloud-amd64` does not. Without them, `mount` prints "unknown filesystem type" or "No such device".
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/share.rs"), "```"))]
//! *virtiofs* is a faster file system for the same purpose, on QEMU and Linux. A program, `virtiofsd`, serves the
//! directory. The crate starts `virtiofsd`, and it ends with the VM. [`engines`](super::engines#vsock-commands-and-shared-directories)
//! compares the two programs of this name; one of them requires root. Only two lines differ:
//!
//! ```
//! use hyperkit::{HyperKit, ShareVirtiofs};
//!
//! let description = HyperKit::new().share_virtiofs(ShareVirtiofs::new("shared", "files"));
//! let mount = "mount -t virtiofs files /mnt"; // in the guest, whose kernel needs `virtiofs`
//! ```
//!
//! # Throw away what a VM writes
//! A disk with an [`overlay`](crate::Disk::overlay) begins with the content of an image, and never changes the image: the guest's writes go
//! to a file in the state directory, which is deleted with the VM. So each run begins with the same content, without a copy of the image,
//! and any number of VMs can use one image at once. While they run, the crate refuses to start a VM that would write to the image. The
//! image can be raw or qcow2. Overlays work only on QEMU, and do not need `qemu-img`.
//!
//! To change the image itself, start a VM on the disk without the overlay.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/overlay.rs"), "```"))]
//! # Reach a port of the guest
//! [`Network::Nat`](crate::Network::Nat) gives the guest a network card behind address translation, without root. On QEMU,
//! [`port_forward`](crate::HyperKit::port_forward) forwards a port of 127.0.0.1 to the guest. Port 0 is any free port, so several
//! VMs do not collide; [`host_port`](crate::Vm::host_port) returns its number. QEMU accepts a connection at once. If no program
//! in the guest listens yet, QEMU closes it again. So reconnect until an answer comes. On hyperkit the network is VPNKit, a
//! user-mode network stack that is part of Docker Desktop for Mac. There the crate cannot forward ports; use vsock.
//! With [`Network::Isolated`](crate::Network::Isolated) instead, on QEMU, the guest has forwarded ports and reaches nothing else.
//!
//! The guest must get an address by DHCP, and listen on it or on all addresses, not on 127.0.0.1. The guest in
//! `target/guest` does so, with an echo server if `hyperkit.echo=PORT` is on its kernel command line.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/port.rs"), "```"))]
//! # Connect VMs to each other
//! [`internal_network`](crate::HyperKit::internal_network) gives a VM a card on a network between VMs, without root. The VMs whose
//! descriptions name the same directory are on the same network, up to 16 of them, each with a different number. Any program can
//! start any of these VMs, in any order. When a VM exits, the others stay connected, and the VM can join again. The network has no process
//! of its own: each QEMU sends the frames of its guest to the sockets of the others. The first start creates the directory with mode
//! 0700; it is deleted with the last VM's sockets.
//!
//! The network connects only the guests. To reach the host or other networks, give a VM another card with
//! [`Network::Nat`](crate::Network::Nat). The two networks stay separate, unless the guest forwards packets between them. A VM can be on
//! several internal networks, for instance as a router.
//!
//! There is no DHCP server on the network. Give each guest a fixed address:
//!
//! - by the agent, as below, or by a script of the guest;
//! - by the kernel command line, `ip=192.168.7.1:::255.255.255.0::eth0:off`, if the kernel has `IP_PNP` and the card's driver built in.
//!   The initrds of some distributions read the same parameter;
//! - by the guest's configuration. [`InternalNetwork::mac`](crate::InternalNetwork::mac) returns the card's MAC address, which stays the
//!   same: `[Match] MACAddress=…` for systemd-networkd, `match: macaddress: …` for netplan.
//!
//! The card is the last one of the VM, so it is `eth0` if it is the only one, and `eth1` if the VM also has a card with `Network::Nat`.
//! Distributions may rename cards; then find the card by its MAC address in `/sys/class/net/*/address`.
//!
//! Every frame reaches every VM of the network, as on an Ethernet hub. A frame that a VM does not read in time is lost: TCP sends it again.
//! While a VM is [paused](crate::Vm::pause), frames to it are lost, too; [`resume`](crate::Vm::resume) connects it again. If a debugger
//! ([`gdb_port`](crate::HyperKit::gdb_port)) or SIGSTOP stops a VM, each QEMU that sends to this VM uses a whole CPU of the host until
//! the VM continues.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/network.rs"), "```"))]
//! # ssh into a cloud image
//! A cloud image is a disk on which a distribution is installed, with a program, usually cloud-init, that configures it at the
//! first boot. Its kernel is on the disk, so the VM boots a UEFI firmware ([`bootrom`](crate::HyperKit::bootrom)), not a
//! [`kernel`](crate::HyperKit::kernel). The configuration comes from a second disk with the label `CIDATA`, a NoCloud *seed*. In
//! the program below it creates the user `me` with a key, and installs a host key. Because the program knows the host key, ssh
//! checks it as usual.
//!
//! - Take Debian's `genericcloud` or `generic` image for amd64, or another distribution's image that is made for NoCloud or OpenStack.
//! - Attach the seed as a [disk](crate::Disk), as here. [`iso`](crate::HyperKit::iso) makes a SATA drive, for which Debian's
//!   cloud kernel has no driver.
//! - The disk grows to 4 GiB, and cloud-init grows the file system. If your image is larger than that, raise the number: the
//!   crate does not shrink disks.
//! - The guest's console is on the serial port only if the image's own kernel command line has `console=ttyS0` (`ttyAMA0` on arm64). ssh does not need
//!   it.
//! - Under emulation, an image with cloud-init answers after 45 to 90 s. It answers before cloud-init is done; the command
//!   `cloud-init status --wait` waits for that.
//! - An x86 CPU that QEMU emulates has the instructions of x86-64-v2, which RHEL 9 and its relatives require.
//!   [`cpu`](crate::HyperKit::cpu) chooses another model.
//! - The host needs `ovmf`, `qemu-utils`, `genisoimage` and `openssh-client`, as Debian's packages are called. Homebrew's QEMU has
//!   its firmware in `share/qemu/edk2-x86_64-code.fd`.
//!
//! To keep the VM, use [`start`](crate::HyperKit::start) instead of [`start_scoped`](crate::HyperKit::start_scoped), and keep the
//! directory `cloud`. While the VM runs, `ssh -F cloud/ssh_config guest` opens a shell.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/ssh.rs"), "```"))]
//! # Use it from tokio
//! The crate needs no async runtime and works with any. Call what blocks for a limited time in `spawn_blocking`:
//! [`shutdown`](crate::Vm::shutdown), and [`wait_ready`](crate::Starting::wait_ready) of the [`Starting`](crate::Starting) that
//! [`spawn`](crate::HyperKit::spawn) returns. Do not call [`wait`](crate::Vm::wait) or
//! [`wait_for_console`](crate::Vm::wait_for_console) there: tokio cannot cancel such a call, and waits for it when the runtime
//! ends. Await [`exited`](crate::Vm::exited) instead, and read the console as a tokio pipe.
//! [`Starting::kill`](crate::Starting::kill) cancels a start. [`shutdown`](crate::Vm::shutdown) lasts as long as its grace period
//! at most. The page [`embedding`](super::embedding#tokio-and-other-runtimes) lists for each call whether it blocks.
//!
//! The program needs tokio's features `io-util`, `macros`, `net`, `rt`, `signal` and `time`.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/tokio.rs"), "```"))]
//! # Keep a VM across restarts
//! A VM from [`start`](crate::HyperKit::start) outlives the program, however the program ends. Its state directory records it, so
//! give each VM a fixed one. [`start_or_attach`](crate::HyperKit::start_or_attach) starts the VM, or returns the one that runs
//! there; [`Vm::description`](crate::Vm::description) returns how the running VM was started, which may differ from what you
//! pass. [`list`](crate::HyperKit::list) finds all VMs in a directory, also those that an earlier version of your program
//! started. If several programs call `start_or_attach` for the same directory at once, one of them starts the VM, and the others
//! attach to it.
//!
//! Only the process that started a VM learns its exit status. After a restart, your program gets
//! [`Exit::Unknown`](crate::Exit::Unknown).
//! The VMs do not survive a reboot of the host. Start them again then: disks in the state directory are reused.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/keep.rs"), "```"))]
//! # Boot a kernel of your own
//! For Linux, [`kernel`](crate::HyperKit::kernel) is a bzImage for x86-64 (`arch/x86/boot/bzImage`) or, on QEMU, `vmlinux` for x86-64 or
//! `Image` for arm64 (`arch/arm64/boot/Image`). An emulated x86 CPU boots a `vmlinux` 2 s sooner than a bzImage; the page `engines`
//! [compares the formats](super::engines#kernels). [`initrd`](crate::HyperKit::initrd) is one or
//! more cpio archives, compressed or not. Linux unpacks them and runs `/init`. The program below packs a statically linked program as
//! `/init`. For that, save this C program as `init.c`, and run `cc -static -o hello init.c`:
#![cfg_attr(not(doctest), doc = concat!("```c\n", include_str!("../../examples/howto/init.c"), "```"))]
//! `make defconfig kvm_guest.config` enables almost all that the kernel needs:
//!
//! | for | options |
//! |---|---|
//! | boot of `vmlinux` | `PVH` |
//! | console | `SERIAL_8250`, `SERIAL_8250_CONSOLE`, or on arm64 `SERIAL_AMBA_PL011`, `SERIAL_AMBA_PL011_CONSOLE` |
//! | initrd | `BLK_DEV_INITRD`, and `RD_GZIP` or another compression |
//! | all devices | `PCI`, `PCI_MSI`, `VIRTIO_PCI`; on arm64 `PCI_HOST_GENERIC` |
//! | disks, network card, random numbers | `VIRTIO_BLK`, `VIRTIO_NET`, `HW_RANDOM_VIRTIO` |
//! | CD drives | `ATA`, `SATA_AHCI`, `BLK_DEV_SR`, `ISO9660_FS` |
//! | shared directories | `NET_9P`, `NET_9P_VIRTIO`, `9P_FS` |
//! | commands ([`agent`](crate::HyperKit::agent)) | `VIRTIO_CONSOLE`; on hyperkit those of vsock |
//! | vsock | `VSOCKETS`, `VIRTIO_VSOCKETS` |
//! | power button | `ACPI`, `ACPI_BUTTON`, or on arm64 without firmware `KEYBOARD_GPIO`; `INPUT_EVDEV`, and in the guest a program that reacts: systemd-logind or acpid |
//!
//! Without a console the VM runs and prints nothing. Without a reaction to the power button, [`shutdown`](crate::Vm::shutdown)
//! kills the VM after its grace period.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/kernel.rs"), "```"))]
//! # See why it did not start
//! Three things can fail. Look at [`Error::kind`](crate::Error::kind), and for `Timeout` at the variant.
//!
//! - The description or a file is wrong (`Config`). Nothing was created, and
//!   [`Error::violations`](crate::Error::violations) lists everything that is wrong at once. [`check`](crate::HyperKit::check) returns
//!   the same without a start.
//! - The hypervisor fails (`Hypervisor`, `Timeout`). The error has how it exited, and the end of its output
//!   ([`LogTail`](crate::LogTail)). The whole output is in `hyperkit.log` in the state directory. Each line also goes to the
//!   [`log`] facade: with env_logger, set `RUST_LOG=hyperkit=info`.
//! - The guest fails after the start has succeeded (`Guest`, `Timeout`). [`console_log`](crate::HyperKit::console_log) returns what the
//!   guest has printed, also after the VM has exited; it is `console-ring` in the state directory. If the log is empty, the kernel has
//!   no serial console, or the `console=` on its command line names another port.
//!
//! `{error:#}` prints the message, its causes and the last lines of hypervisor and console in one line, for a log. The program
//! below prints what a person needs. The program needs the crate `log`.
#![cfg_attr(not(doctest), doc = concat!("```rust\n", include_str!("../../examples/howto/why.rs"), "```"))]
