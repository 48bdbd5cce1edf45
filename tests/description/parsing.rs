//! `parse_arguments` with command lines of other programs (the Go packages, Docker Desktop, minikube, linuxkit), with
//! options that have no field, and with arguments that hyperkit rejects.

use hyperkit::{
    ConfigError, Console, Disk, Engine, Error, FlushMode, HyperKit, Multiboot, Network, QcowOptions, Serial,
    parse_arguments,
};
use serde_json::{Value, json};

use crate::with_keys;

/// Splits a command line at spaces. The value of `-f`, which comes last in these tests, can contain spaces.
fn words(command_line: &str) -> Vec<String> {
    let (options, firmware) = command_line.split_once(" -f ").unwrap();
    options.split(' ').chain(["-f", firmware]).map(str::to_owned).collect()
}

fn parsed(command_line: &str) -> (HyperKit, String) {
    parse_arguments(&words(command_line)).unwrap()
}

/// The options that hyperkit requires in addition to a kernel.
const BARE: &str = "-A -s 0:0,hostbridge -s 31,lpc";

/// Returns the description that [`BARE`] and a kernel are parsed to.
fn bare() -> HyperKit {
    HyperKit::new().kernel("/k").memory_mib(256).random(false).utc(false).no_serials()
}

#[test]
fn recorded_command_lines_round_trip() {
    let recorded = [include_str!("../recorded/argv-2017.jsonl"), include_str!("../recorded/argv-2020.jsonl")];
    let cases: Vec<Value> =
        recorded.iter().flat_map(|of_year| of_year.lines()).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(cases.len(), 35);
    for case in cases {
        let mut arguments: Vec<String> = serde_json::from_value(case["arguments"].clone()).unwrap();
        let (description, cmdline) = parse_arguments(&arguments).unwrap();
        // hyperkit rejects `format=raw`.
        arguments.iter_mut().for_each(|argument| *argument = argument.replace(",format=raw", ""));
        assert_eq!(description.arguments(&cmdline).unwrap(), arguments, "case {}", case["name"]);
        assert_eq!(cmdline, case["kernel_cmdline"].as_str().unwrap(), "case {}", case["name"]);
        assert_eq!(description.extra_arguments, [""; 0], "case {}", case["name"]);
    }
}

#[test]
fn docker_desktop_arguments_are_parsed() {
    let (description, cmdline) = parsed(
        "com.docker.hyperkit -A -u -F vms/0/hyperkit.pid -c 2 -m 2048M -s 0:0,hostbridge -s 31,lpc -s 1:0,virtio-vpnkit,\
         path=vpnkit.eth.sock,uuid=61b9ed19-44f8-4b92-bdd6-81bfa8f2e4c0 -U b9f6cfc1-9d43-4b2b-8a9c-6b9f04f4e6d2 -s 2:0,\
         virtio-blk,/Users/x/Library/Containers/com.docker.docker/Data/vms/0/data/Docker.raw -s 3,virtio-sock,guest_cid=3,\
         path=vms/0,guest_forwards=2376;1525 -s 4,virtio-rnd -l com1,null,asl,log=vms/0/console-ring -f kexec,/app/kernel,\
         /app/initrd.img,earlyprintk=serial page_poison=1 vsyscall=emulate panic=1 console=ttyS0 console=ttyS1",
    );
    let expected = HyperKit::new()
        .hyperkit("com.docker.hyperkit")
        .state_dir("vms/0")
        .cpus(2)
        .memory_mib(2048)
        .network(Network::VpnKit("vpnkit.eth.sock".into()))
        .vpnkit_key("61b9ed19-44f8-4b92-bdd6-81bfa8f2e4c0")
        .uuid("b9f6cfc1-9d43-4b2b-8a9c-6b9f04f4e6d2")
        .disk(Disk::raw("/Users/x/Library/Containers/com.docker.docker/Data/vms/0/data/Docker.raw"))
        .vsock(true)
        .vsock_port(2376)
        .vsock_port(1525)
        .serial(Serial::none().log().apple_log())
        .kernel("/app/kernel")
        .initrd("/app/initrd.img");
    assert_eq!(description, expected);
    assert_eq!(cmdline, "page_poison=1 vsyscall=emulate panic=1 console=ttyS0 console=ttyS1");
}

#[test]
fn docker_desktop_arguments_with_qcow2_are_parsed() {
    let (description, _) = parsed(
        "com.docker.hyperkit -A -u -F vms/0/hyperkit.pid -c 4 -m 2048M -s 0:0,hostbridge -s 31,lpc -s 1:0,virtio-vpnkit,\
         path=s50 -s 2:0,ahci-hd,file:///Users/x/Library/Group%20Containers/Docker.qcow2?sync=os&buffered=1,format=qcow,\
         qcow-config=discard=true;compact_after_unmaps=262144;keep_erased=262144;runtime_asserts=false -s 3,virtio-sock,\
         guest_cid=3,path=vms/0 -s 4,ahci-cd,/app/linuxkit.iso -s 5,ahci-cd,vms/0/config.iso -s 6,virtio-rnd -s 7,virtio-9p,\
         path=s51,tag=port -l com1,autopty=vms/0/tty,asl -f bootrom,/app/UEFI.fd,,",
    );
    let mut qcow = QcowOptions::default();
    (qcow.flush, qcow.compact_after, qcow.keep_erased) = (FlushMode::Os, 262_144, 262_144);
    let expected = HyperKit::new()
        .hyperkit("com.docker.hyperkit")
        .state_dir("vms/0")
        .cpus(4)
        .memory_mib(2048)
        .network(Network::VpnKit("s50".into()))
        .disk(Disk::qcow2("/Users/x/Library/Group Containers/Docker.qcow2", qcow).ahci().trim())
        .vsock(true)
        .iso("/app/linuxkit.iso")
        .iso("vms/0/config.iso")
        .socket_9p("s51", "port")
        .console(Console::AppleLog)
        .bootrom("/app/UEFI.fd");
    assert_eq!(description, expected);
}

#[test]
fn minikube_arguments_are_parsed() {
    let (description, cmdline) = parsed(
        "/usr/local/bin/hyperkit -A -u -F /Users/x/.minikube/machines/minikube/hyperkit.pid -c 2 -m 4000M -s 0:0,hostbridge \
         -s 31,lpc -s 1:0,virtio-net -U b97ad302-0a93-11ec-9e3f-acde48001122 -s 2:0,virtio-blk,/Users/x/.minikube/machines/\
         minikube/minikube.rawdisk -s 3,ahci-cd,/Users/x/.minikube/machines/minikube/boot2docker.iso -s 4,virtio-rnd -l com1,\
         autopty=/Users/x/.minikube/machines/minikube/tty,log=/Users/x/.minikube/machines/minikube/console-ring -f kexec,\
         /Users/x/.minikube/machines/minikube/bzimage,/Users/x/.minikube/machines/minikube/initrd,earlyprintk=serial \
         loglevel=3 console=ttyS0 console=tty0 noembed nomodeset norestore waitusb=10 hw_rng_model=virtio base host=minikube",
    );
    let dir = |name: &str| format!("/Users/x/.minikube/machines/minikube/{name}");
    let expected = HyperKit::new()
        .hyperkit("/usr/local/bin/hyperkit")
        .state_dir("/Users/x/.minikube/machines/minikube")
        .cpus(2)
        .memory_mib(4000)
        .vmnet(true)
        .uuid("b97ad302-0a93-11ec-9e3f-acde48001122")
        .disk(Disk::raw(dir("minikube.rawdisk")))
        .iso(dir("boot2docker.iso"))
        .console(Console::Pty)
        .kernel(dir("bzimage"))
        .initrd(dir("initrd"));
    assert_eq!(description, expected);
    assert!(cmdline.starts_with("loglevel=3 ") && cmdline.ends_with(" host=minikube"));
}

#[test]
fn linuxkit_arguments_are_parsed() {
    let (description, cmdline) = parsed(
        "hyperkit -A -u -F linuxkit-state/hyperkit.pid -c 1 -m 1024M -s 0:0,hostbridge -s 31,lpc -s 1:0,virtio-vpnkit,path=/Users/\
         x/vpnkit.eth.sock -U 1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55 -s 2,virtio-sock,guest_cid=3,path=linuxkit-state -s 3,ahci-cd,\
         linuxkit-state/metadata.iso -s 4,virtio-rnd -l com1,stdio -f kexec,linuxkit-kernel,linuxkit-initrd.img,\
         earlyprintk=serial console=ttyS0 page_poison=1",
    );
    let expected = HyperKit::new()
        .hyperkit("hyperkit")
        .state_dir("linuxkit-state")
        .network(Network::VpnKit("/Users/x/vpnkit.eth.sock".into()))
        .uuid("1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55")
        .vsock(true)
        .iso("linuxkit-state/metadata.iso")
        .console(Console::Stdio)
        .kernel("linuxkit-kernel")
        .initrd("linuxkit-initrd.img");
    assert_eq!(description, expected);
    assert_eq!(cmdline, "console=ttyS0 page_poison=1");
}

/// The command lines leave out what is hyperkit's default, or spell options in ways that the Go package does not use.
#[test]
fn defaults_and_alternative_spellings_are_parsed() {
    let auto = (bare(), "auto".to_owned());
    assert_eq!(parsed(&format!("{BARE} -f kexec,/k")), auto);
    assert_eq!(parsed(&format!("{BARE} -f kexec,/k,,")), auto);
    assert_eq!(parsed(&format!("{BARE} -c 7 -m 1G -c1 -m 256 -f kexec,/k")), auto, "the last option wins");
    let ended = [&words(&format!("{BARE} -f kexec,/k"))[..], &["--".to_owned()]].concat();
    assert_eq!(parse_arguments(&ended).unwrap(), auto);
    assert_eq!(parsed(&format!("{BARE} -f kexec,/k,,earlyprintk=serialx")).1, "earlyprintk=serialx");
    for memory in ["256M", "256m", "0400M", "262144k", "268435456", "268435456b"] {
        assert_eq!(parsed(&format!("{BARE} -m {memory} -f kexec,/k")), auto, "{memory}");
    }
    let spelled = format!(
        "{BARE} -s 0:1:0,virtio-tap,tap0,mac=02:00:00:00:00:01 -s 2,virtio-9p,port=9 -l COM1,stdio -f multiboot,/k"
    );
    let expected = bare().tap("tap0").mac("02:00:00:00:00:01").port_9p(9, "plan9").console(Console::Stdio);
    let mut expected = expected.multiboot(Multiboot::new("/k"));
    (expected.kernel, expected.serials) = (None, None);
    assert_eq!(parsed(&spelled), (expected, String::new()));
}

/// Another program may have started the VM without the `earlyprintk=serial` of the Go package.
#[test]
fn kernel_command_line_without_earlyprintk_round_trips() {
    for line in ["console=ttyS0 a=1,2", "earlyprintk=serialx", "auto"] {
        for given in [line.to_owned(), format!("earlyprintk=serial {line}")] {
            let (description, cmdline) = parsed(&format!("{BARE} -f kexec,/k,,{given}"));
            let last = |description: &HyperKit| description.arguments(&cmdline).unwrap().last().unwrap().clone();
            assert_eq!(last(&description), format!("kexec,/k,,{given}"));
            assert_eq!(last(&description.hyperkit("qemu-system-x86_64")), line, "QEMU gets it in neither case");
        }
    }
}

/// Each case has options, and those of them that become extra arguments because no field can express them.
#[test]
fn options_without_a_field_become_extra_arguments() {
    let uuid = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";
    for (options, extra) in [
        // Devices out of order, and duplicate devices. The devices after them are not in their usual slots.
        ("-s 1,virtio-rnd -s 2:0,virtio-blk,/d", "-s 2:0,virtio-blk,/d"),
        ("-s 1,virtio-rnd -s 2,virtio-rnd", "-s 2,virtio-rnd"),
        (
            "-s 2,virtio-sock,guest_cid=3,path=/s -s 1,virtio-sock,guest_cid=4,path=/s",
            "-s 2,virtio-sock,guest_cid=3,path=/s",
        ),
        // Slots that are left out, and functions and buses other than 0.
        ("-s 2,virtio-rnd", "-s 2,virtio-rnd"),
        ("-s 1,virtio-rnd -s 3,virtio-9p,port=1", "-s 3,virtio-9p,port=1"),
        ("-s 1:1,virtio-rnd -s 1,virtio-rnd", "-s 1:1,virtio-rnd"),
        ("-s 2:1:0,virtio-rnd", "-s 2:1:0,virtio-rnd"),
        // Options of a device that the crate does not know.
        ("-s 1,virtio-net,x", "-s 1,virtio-net,x"),
        ("-s 1:0,virtio-vpnkit,path=/s,macfile=/m", "-s 1:0,virtio-vpnkit,path=/s,macfile=/m"),
        (
            "-s 1,virtio-vpnkit,path=/s -s 2,virtio-tap,t,mac=02:00:00:00:00:01",
            "-s 2,virtio-tap,t,mac=02:00:00:00:00:01",
        ),
        ("-s 1,virtio-blk,/d,nocache", "-s 1,virtio-blk,/d,nocache"),
        ("-s 1,virtio-blk,/d,", "-s 1,virtio-blk,/d,"),
        ("-s 1,virtio-blk,/d,ro=", "-s 1,virtio-blk,/d,ro="),
        ("-s 1,ahci-hd,/d,sync=", "-s 1,ahci-hd,/d,sync="),
        ("-s 1,virtio-blk,/d,format=qcow", "-s 1,virtio-blk,/d,format=qcow"),
        ("-s 1,virtio-blk,/d,qcow-config=discard=true", "-s 1,virtio-blk,/d,qcow-config=discard=true"),
        ("-s 1,virtio-blk,file:///d?sync=os,format=qcow", "-s 1,virtio-blk,file:///d?sync=os,format=qcow"),
        (
            "-s 1,virtio-blk,file://d?sync=os&buffered=1,format=qcow",
            "-s 1,virtio-blk,file://d?sync=os&buffered=1,format=qcow",
        ),
        (
            "-s 1,virtio-blk,file:///%+1?sync=&buffered=1,format=qcow",
            "-s 1,virtio-blk,file:///%+1?sync=&buffered=1,format=qcow",
        ),
        ("-s 1,ahci-cd,/i,ro", "-s 1,ahci-cd,/i,ro"),
        ("-s 1,virtio-9p,path=/s,port=1", "-s 1,virtio-9p,path=/s,port=1"),
        ("-s 1,virtio-sock,guest_cid=3", "-s 1,virtio-sock,guest_cid=3"),
        ("-s 30,uart,/dev/ttys001", "-s 30,uart,/dev/ttys001"),
        // Values that this crate rejects, but hyperkit does not reject as arguments.
        ("-s 1,virtio-sock,guest_cid=2,path=/s", "-s 1,virtio-sock,guest_cid=2,path=/s"),
        ("-s 1,virtio-blk,/d,sectorsize=500", "-s 1,virtio-blk,/d,sectorsize=500"),
        (
            "-s 1,virtio-blk,file:///a%2Cb?sync=&buffered=1,format=qcow",
            "-s 1,virtio-blk,file:///a%2Cb?sync=&buffered=1,format=qcow",
        ),
        // Backends of serial ports, and places of files, that this crate does not use.
        ("-l com1,/dev/ttys003", "-l com1,/dev/ttys003"),
        ("-l com2,stdio", "-l com2,stdio"),
        ("-l com1,autopty", "-l com1,autopty"),
        ("-l com1,autopty=/elsewhere/tty", "-l com1,autopty=/elsewhere/tty"),
        ("-l com1,null,null", "-l com1,null,null"),
        ("-F /vm/hyperkit.pid -l com1,autopty=/vm/null", "-l com1,autopty=/vm/null"),
        ("-F /vm/hyperkit.pid -l com2,autopty=/vm/tty1", "-l com2,autopty=/vm/tty1"),
        ("-F /vm/other.pid -l com1,autopty=/vm/tty", "-F /vm/other.pid -l com1,autopty=/vm/tty"),
        ("-F /a,b/hyperkit.pid", "-F /a,b/hyperkit.pid"),
        ("-e -s 1,uart -b", "-e -b -s 1,uart"),
    ] {
        let (description, cmdline) = parsed(&format!("{BARE} -U {uuid} {options} -f kexec,/k,,quiet"));
        assert_eq!(description.extra_arguments.join(" "), extra, "{options}");
        // The description gives all options again, so it describes the same VM.
        let again = description.arguments(&cmdline).unwrap();
        let rendered = format!(" {} ", again.join(" ").replace(":0,", ","));
        for option in options.replace(":0,", ",").split(" -").map(|option| option.trim_start_matches('-')) {
            assert!(rendered.contains(&format!(" -{option} ")), "{option} is not in {rendered}");
        }
        assert_eq!(parse_arguments(&again).unwrap(), (description, cmdline), "{options}");
    }
}

#[test]
fn arguments_that_hyperkit_rejects_are_an_error() {
    let assert_rejected = |words: &[&str], culprit: &str| match parse_arguments(words) {
        Err(Error::InvalidArguments { argument, .. }) => assert_eq!(argument, culprit, "{words:?}"),
        other => panic!("{words:?}: {other:?}"),
    };
    assert_rejected(&[], "-A");
    assert_rejected(&["hyperkit"], "-A");
    for (options, culprit) in [
        ("-c 0", "0"),
        ("-c 65", "65"),
        ("-c two", "two"),
        ("-m 1M", "1M"),
        ("-m 1025k", "1025k"),
        ("-m 08M", "08M"),
        ("-m 2X", "2X"),
        ("-m 2MB", "2MB"),
        ("-m 99999999999T", "99999999999T"),
        ("-U 1f0e6d3c", "1f0e6d3c"),
        ("-g 65536", "65536"),
        ("-s 32,virtio-rnd", "32,virtio-rnd"),
        ("-s 1:8,virtio-rnd", "1:8,virtio-rnd"),
        ("-s 0:0:1:0,virtio-rnd", "0:0:1:0,virtio-rnd"),
        ("-s x,virtio-rnd", "x,virtio-rnd"),
        ("-s 1", "1"),
        ("-s 1,e1000", "1,e1000"),
        ("-s 1,Virtio-rnd", "1,Virtio-rnd"),
        ("-s 31:0,virtio-rnd", "31:0,virtio-rnd"),
        ("-s 4,virtio-rnd -s 4:0,uart", "4:0,uart"),
        ("-s 4:2,virtio-rnd -s 0:4:2,uart", "0:4:2,uart"),
        ("-l com3,null", "com3,null"),
        ("-l com", "com"),
        ("-v", "-v"),
        ("-uM", "-uM"),
        ("-z", "-z"),
        ("-é", "-é"),
        ("-f kexec", "kexec"),
        ("-f kexec,,/i,x", "kexec,,/i,x"),
        ("-f fbsd,/a,/b,c", "fbsd,/a,/b,c"),
        ("-f bootrom,,,", "bootrom,,,"),
        ("-f multiboot,/k,;x,y", "multiboot,/k,;x,y"),
        ("-c", "-c"),
    ] {
        let usual: Vec<_> = BARE.split(' ').chain(["-f", "kexec,/k,,quiet"]).collect();
        assert_rejected(&[&usual[..], &options.split(' ').collect::<Vec<_>>()].concat(), culprit);
    }
    // Without a required option, the arguments are an error.
    for missing in ["-A", "0:0,hostbridge", "31,lpc"] {
        let words = words(&format!("{BARE} -f kexec,/k"));
        let without: Vec<_> = words.iter().map(|word| if word == missing { "-u" } else { word }).collect();
        assert!(matches!(parse_arguments(&without), Err(Error::InvalidArguments { .. })), "{missing}");
    }
    let qemu = parse_arguments(&["/usr/bin/qemu-system-x86_64", "-A"]).unwrap_err();
    assert!(matches!(qemu.violations(), [ConfigError::Unsupported { engine: Engine::Qemu, .. }]), "{qemu:?}");
}

/// hyperkit stops at the first operand and says nothing.
#[test]
fn first_word_that_hyperkit_would_not_read_is_named() {
    let started =
        HyperKit::new().state_dir("/vm").kernel("/k").initrd("/i").arguments("console=ttyS0 panic=1").unwrap();
    let ps = format!("hyperkit {} -F /vm/hyperkit.pid", started.join(" "));
    let usual = format!("{BARE} -f kexec,/k");
    for (line, operand) in [
        (ps, "console=ttyS0"),
        (format!("hyperkit operand {usual}"), "operand"),
        (format!("{BARE} -l com1, stdio -f kexec,/k"), "stdio"),
        (format!("{BARE} -s 1:0,virtio-blk,/my disk.img -f kexec,/k"), "disk.img"),
        (format!("{usual} - -F /vm/hyperkit.pid"), "-"),
        (format!("{usual} -- -F /vm/hyperkit.pid"), "-F"),
        (format!("{usual} -- --"), "--"),
        (format!("{usual} "), ""),
    ] {
        match parse_arguments(&line.split(' ').collect::<Vec<_>>()) {
            Err(Error::InvalidArguments { argument, .. }) => assert_eq!(argument, operand, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn recorded_kernel_cmdline_is_that_of_the_last_start_on_each_engine() {
    let linux = HyperKit::new().kernel("/k").initrd("/i");
    let multiboot = HyperKit::new().multiboot(Multiboot::new("/k").module("/m", "words"));
    for mut description in [linux, multiboot] {
        assert_eq!(description.recorded_kernel_cmdline(), None, "the VM was never started");
        for program in ["hyperkit", "qemu-system-x86_64"] {
            description.hyperkit = Some(program.into());
            for line in ["console=ttyS0 a=1,2", "earlyprintk=serial again"] {
                let arguments = description.arguments(line).unwrap();
                description = with_keys(&description, json!({ "arguments": arguments }));
                assert_eq!(description.recorded_kernel_cmdline().as_deref(), Some(line), "{program}");
            }
        }
    }
    for program in ["hyperkit", "qemu-system-x86_64"] {
        let description = HyperKit::new().hyperkit(program).bootrom("/rom");
        assert_eq!(description.recorded_kernel_cmdline(), None);
        let description = with_keys(&description, json!({ "arguments": description.arguments("").unwrap() }));
        assert_eq!(description.recorded_kernel_cmdline().as_deref(), Some(""));
    }
}

/// A program that found a VM can change its kernel and engine before it starts the VM again with the same line.
#[test]
fn recorded_kernel_cmdline_does_not_depend_on_later_changes_of_the_description() {
    let programs = ["hyperkit", "qemu-system-x86_64", "qemu-system-aarch64"];
    for (recorded, line) in [
        (HyperKit::new().kernel("/k"), "console=ttyS0 quiet"),
        (HyperKit::new().kernel("/k").initrd("/i"), "-f -append"),
        (HyperKit::new().bootrom("/rom"), ""),
    ] {
        for program in programs {
            let recorded = recorded.clone().hyperkit(program);
            let recorded = with_keys(&recorded, json!({ "arguments": recorded.arguments(line).unwrap() }));
            for other in [None, Some(programs[0]), Some(programs[1]), Some(programs[2])] {
                for (kernel, bootrom) in [(Some("/k".into()), None), (None, Some("/rom".into()))] {
                    let mut changed = recorded.clone();
                    (changed.hyperkit, changed.kernel, changed.bootrom) = (other.map(Into::into), kernel, bootrom);
                    assert_eq!(changed.recorded_kernel_cmdline().as_deref(), Some(line), "{program} {other:?}");
                }
            }
        }
    }
}
