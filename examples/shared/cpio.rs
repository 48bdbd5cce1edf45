//! Archives that Linux unpacks as its initial RAM disk (cpio, "newc").

/// Each part starts at a multiple of this many bytes.
const ALIGNMENT: usize = 4;

/// Appends an archive with these files, each with its name, mode and content. Linux unpacks one archive after the other, and
/// a later file replaces an earlier one of the same name. A directory has no content.
pub fn append(initrd: &mut Vec<u8>, files: &[(&str, u32, &[u8])]) {
    pad(initrd);
    let end: &[(&str, u32, &[u8])] = &[("TRAILER!!!", 0, b"")];
    for (number, (name, mode, content)) in files.iter().chain(end).enumerate() {
        let inode = number + 1;
        let (links, size, name_size) = (1, content.len(), name.len() + 1);
        initrd.extend_from_slice(b"070701");
        let (owner, group, time, devices) = (0, 0, 0, [0; 4]);
        let before = [inode, *mode as usize, owner, group, links, time, size];
        for field in before.into_iter().chain(devices).chain([name_size, 0]) {
            initrd.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        initrd.extend_from_slice(name.as_bytes());
        initrd.push(0);
        pad(initrd);
        initrd.extend_from_slice(content);
        pad(initrd);
    }
}

fn pad(initrd: &mut Vec<u8>) {
    initrd.resize(initrd.len().next_multiple_of(ALIGNMENT), 0);
}
