//! Directories of the host that the guest mounts by 9p.

use crate::common::guest::{Guest, QUIET_CMDLINE, create_share, open_shell, qemu_in_mount_namespace, run_in_guest};

/// Each new tmpfs gives its first file the same inode number.
#[test]
fn file_system_mounted_in_a_share_has_distinct_inode_numbers() {
    let mut guest = Guest::new();
    let dir = guest.state_dir.parent().unwrap().to_owned();
    let share = create_share(&dir, "share", "not seen by the guest");
    let qemu = qemu_in_mount_namespace(
        &dir,
        "cd \"$(dirname \"$0\")\"\nmount -t tmpfs none share\necho outer >share/first\nmkdir share/inner\n\
         mount -t tmpfs none share/inner\necho inner >share/inner/first\n\
         [ \"$(stat -c %i share/first)\" = \"$(stat -c %i share/inner/first)\" ]",
    );
    guest.description = guest.description.clone().hyperkit(qemu).share_dir(&share, "tag");
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    let console = open_shell(&vm);
    let content = run_in_guest(
        &console,
        "mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose tag /mnt; cd /mnt; cat first inner/first first",
    );
    assert_eq!(content, "outer\ninner\nouter\n");
    let inodes = run_in_guest(&console, "stat -c %i first inner/first");
    let inodes: Vec<_> = inodes.lines().collect();
    assert!(inodes.len() == 2 && inodes[0] != inodes[1], "{inodes:?}");
}
