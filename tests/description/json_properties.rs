//! Property tests of JSON: any bytes in a state file load or are an error, and any description stays the same when it is
//! written and read.

use std::fs;

use hyperkit::{Console, Disk, Error, HyperKit};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use crate::common::TestDir;
use crate::with_keys;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_file_loads_or_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let test_dir = TestDir::new();
        fs::create_dir(test_dir.path("vm")).unwrap();
        test_dir.write("vm/hyperkit.json", &bytes);
        test_dir.write("vm/hyperkit.pid", &bytes);
        match HyperKit::from_state(test_dir.path("vm")) {
            Ok(description) => prop_assert!(!description.is_running().unwrap()),
            Err(error) => prop_assert!(matches!(error, Error::DamagedState { .. }), "{error:?}"),
        }
    }

    #[test]
    fn any_description_round_trips_through_json(
        cpus in any::<u32>(), memory in any::<u64>(), cid in any::<u32>(), pid in proptest::option::of(1..u32::MAX),
        texts in proptest::collection::vec("\\PC{1,12}", 5), sizes in proptest::collection::vec(1..u64::MAX, 0..4),
        ports in proptest::collection::vec(any::<u32>(), 0..6), isos in proptest::collection::vec("/\\PC{0,12}", 0..4),
        labels in proptest::collection::vec("\\PC{0,12}", 0..5),
        console in proptest::option::of(select(vec![Console::Stdio, Console::Pty, Console::AppleLog])),
    ) {
        let mut description = HyperKit::new().cpus(cpus).memory_mib(memory).vsock_guest_cid(cid).vsock(cid % 2 == 0);
        description = description.kernel(&texts[0]).initrd(&texts[1]).uuid(&texts[2]).socket_9p(&texts[3], &texts[4]);
        description = sizes.iter().fold(description, |description, &size| description.disk(Disk::raw(&texts[0]).size_mib(size)));
        description = ports.into_iter().fold(description, HyperKit::vsock_port);
        description = isos.into_iter().fold(description, HyperKit::iso);
        description = texts.iter().zip(&labels).fold(description, |description, (key, value)| description.label(key, value));
        description.console = console;
        description = with_keys(&description, json!({ "pid": pid, "arguments": texts }));
        prop_assert_eq!((description.recorded_pid(), description.recorded_arguments()), (pid, &texts[..]));
        let again: HyperKit = serde_json::from_str(&description.to_string()).unwrap();
        prop_assert_eq!(again, description);
    }
}
