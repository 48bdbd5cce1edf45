//! What is wrong with a description, without looking at any file.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::config::disk::{DiskFormat, QcowOptions, bytes};
use crate::config::file_url::file_url;
use crate::config::internal_network::{INVALID_NUMBER, LONGEST_SOCKET, NUMBERS};
use crate::config::{HyperKit, InternalNetwork, Network, Protocol, Share9pSource};
use crate::error::ConfigError;
use crate::plan::limits::{
    CIDS, MAX_BACKING_FILE, MAX_CPUS, MAX_SOCKET, MAX_TAG, MAX_TAP, MAX_VIRTIOFS_TAG, MAX_VSOCK_DIR, MAX_VSOCK_PORT,
    MAX_VSOCK_PORTS, MIN_MEMORY_MIB,
};
use crate::plan::root::{ROOT_TAG, root_dir};
use crate::plan::serial_ports::ports;
use crate::plan::slots::layout;
use crate::plan::text::{
    check_escaped_path, check_length, check_path, check_text, has_known_variant, is_cpu, is_unicast_mac, is_uuid,
    reject_chars, utf8,
};

/// Collects violations.
#[derive(Default)]
pub(crate) struct Violations(Vec<ConfigError>);

impl Violations {
    /// Adds the violation if there is one, else returns the value. The same violation is added once.
    pub fn collect<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|violation| self.add(violation)).ok()
    }

    /// Not inlined: its copies would be most of the code of [`validate`].
    #[cold]
    #[inline(never)]
    pub fn add(&mut self, violation: ConfigError) {
        if !self.0.contains(&violation) {
            self.0.push(violation);
        }
    }

    pub fn extend(&mut self, violations: impl IntoIterator<Item = ConfigError>) {
        violations.into_iter().for_each(|violation| self.add(violation));
    }

    pub fn into_result(self) -> crate::error::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(crate::error::Error::InvalidConfig(self.0)) }
    }
}

impl IntoIterator for Violations {
    type Item = ConfigError;
    type IntoIter = std::vec::IntoIter<ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// All violations of a description.
pub(crate) fn validate(description: &HyperKit) -> Violations {
    let mut found = Violations::default();
    check_prerequisites(description, &mut found);
    check_strings(description, &mut found);
    check_shares(description, &mut found);
    check_virtiofs(description, &mut found);
    check_internal_networks(description, &mut found);
    check_ports(description, &mut found);
    if !(1..=MAX_CPUS).contains(&description.cpus) {
        found.add(ConfigError::InvalidCpus { value: description.cpus });
    }
    if description.memory_mib < MIN_MEMORY_MIB || bytes(description.memory_mib).is_none() {
        found.add(ConfigError::InvalidMemory { value: description.memory_mib });
    }
    if description.vsock {
        check_vsock(description, &mut found);
    }
    check_disks(description, &mut found);
    found.collect(layout(description));
    found.collect(check_boot_source(description));
    found
}

/// What is wrong with the kernel command line, without looking at the kernel.
pub(crate) fn check_cmdline(description: &HyperKit, cmdline: &str) -> Result<(), ConfigError> {
    reject_chars(&['\0'], "kernel_cmdline", cmdline)?;
    if description.bootrom.is_some() && !cmdline.is_empty() {
        return Err(ConfigError::CommandLineForRom { value: cmdline.to_owned() });
    }
    Ok(())
}

/// Accepts the path of a multiboot module. hyperkit splits modules at `:`, and their command lines off at `;`.
pub(crate) fn check_module_path(path: &Path) -> Result<&str, ConfigError> {
    check_path("multiboot", path).and_then(|path| reject_chars(&[':', ';'], "multiboot", path))
}

/// Rejects an image that is attached twice, unless both can only read.
pub(crate) fn reject_duplicates(
    images: &[(PathBuf, bool)],
    is_same: impl Fn(&Path, &Path) -> bool,
) -> Result<(), ConfigError> {
    for (index, (path, read_only)) in images.iter().enumerate() {
        let is_duplicate =
            |(other, other_read_only): &(PathBuf, bool)| !(*read_only && *other_read_only) && is_same(path, other);
        if images[..index].iter().any(is_duplicate) {
            return Err(ConfigError::DuplicateDisk { path: path.clone() });
        }
    }
    Ok(())
}

/// Fields that only work together with another one.
fn check_prerequisites(description: &HyperKit, found: &mut Violations) {
    let ports = found.collect(ports(description)).unwrap_or_default();
    if description.state_dir.is_none() {
        let serials = if description.serials.is_some() { "serials" } else { "console" };
        let has_vsock_sockets = description.vsock && description.vsock_dir.is_none();
        let has_files = ports.iter().any(|port| port.has_files());
        for (field, is_needed) in [
            (serials, has_files),
            ("vsock", has_vsock_sockets),
            ("agent", description.agent),
            ("disks", description.has_overlays()),
            ("shares_virtiofs", !description.shares_virtiofs.is_empty()),
        ] {
            if is_needed {
                found.add(ConfigError::StateDirRequired { field });
            }
        }
    }
    let has_network = description.network != Network::None;
    let has_user_network = description.vmnet || has_network;
    let has_root = root_dir(description).is_some();
    let has_nic = has_user_network || description.tap.is_some();
    for (field, is_set, requires, is_met) in [
        ("vsock_ports", !description.vsock_ports.is_empty(), "vsock", description.vsock),
        ("vsock_dir", description.vsock_dir.is_some(), "vsock", description.vsock),
        (
            "vpnkit_preferred_ipv4",
            description.vpnkit_preferred_ipv4.is_some(),
            "vpnkit_key",
            description.vpnkit_key.is_some(),
        ),
        ("vpnkit_preferred_ipv4", description.vpnkit_preferred_ipv4.is_some(), "network", has_network),
        ("mac", description.mac.is_some(), "network", has_nic),
        ("port_forwards", !description.port_forwards.is_empty(), "network", has_user_network),
        ("root", has_root, "agent", description.agent),
        ("root", has_root, "kernel", description.kernel.is_some()),
        ("root", has_root, "initrd", description.initrd.is_some()),
    ] {
        if is_set && !is_met {
            found.add(ConfigError::MissingPrerequisite { field, requires });
        }
    }
}

/// Paths, UUIDs, addresses and other texts.
fn check_strings(description: &HyperKit, found: &mut Violations) {
    if let Some(program) = &description.hyperkit {
        found.collect(utf8("hyperkit", program));
    }
    for (field, path) in [
        ("state_dir", &description.state_dir),
        ("kernel", &description.kernel),
        ("initrd", &description.initrd),
        ("bootrom", &description.bootrom),
        ("vsock_dir", &description.vsock_dir),
        ("vhost_device_vsock", &description.vhost_device_vsock),
        ("virtiofsd", &description.virtiofsd),
    ] {
        if let Some(path) = path {
            found.collect(check_path(field, path));
        }
    }
    for iso in &description.isos {
        found.collect(check_path("isos", iso));
    }
    if let Some(multiboot) = &description.multiboot {
        found.collect(check_path("multiboot", &multiboot.kernel));
        for module in &multiboot.modules {
            found.collect(check_module_path(&module.path));
            found.collect(reject_chars(&[',', '\0', ':'], "multiboot", &module.cmdline));
        }
    }
    for text in &description.extra_arguments {
        found.collect(reject_chars(&['\0'], "extra_arguments", text));
    }
    if let Some(name) = &description.argv0 {
        found.collect(reject_chars(&['\0'], "argv0", name));
        // The operating system treats a blank name as no name, and in hyperkit.json an empty text means unset.
        if name.trim().is_empty() {
            found.add(ConfigError::Missing { field: "argv0" });
        }
    }
    if let Some(value) = description.cpu.as_ref().filter(|cpu| !is_cpu(cpu)) {
        found.add(ConfigError::InvalidCpu { value: value.clone() });
    }
    if let Some(tap) = &description.tap {
        let name = check_text("tap", tap).and_then(|tap| reject_chars(&['/'], "tap", tap));
        found.collect(name.and_then(|name| check_length(MAX_TAP, "tap", name)));
    }
    if let Some(value) = description.mac.as_ref().filter(|mac| !is_unicast_mac(mac)) {
        found.add(ConfigError::InvalidMac { value: value.clone() });
    }
    if let Some(value) = description.vpnkit_preferred_ipv4.as_ref().filter(|ip| ip.parse::<Ipv4Addr>().is_err()) {
        found.add(ConfigError::InvalidIpv4 { value: value.clone() });
    }
    if let Network::VpnKit(socket) = &description.network {
        found.collect(check_path("network", socket).and_then(|path| check_length(MAX_SOCKET, "network", path)));
    }
    // VPNKit accepts any variant.
    let is_uuid_of_vm = |uuid: &str| is_uuid(uuid) && has_known_variant(uuid);
    for (field, uuid, is_valid) in [
        ("uuid", &description.uuid, &is_uuid_of_vm as &dyn Fn(&str) -> bool),
        ("vpnkit_key", &description.vpnkit_key, &is_uuid),
    ] {
        if let Some(value) = uuid.as_ref().filter(|uuid| !is_valid(uuid)) {
            found.add(ConfigError::InvalidUuid { field, value: value.clone() });
        }
    }
}

fn check_shares(description: &HyperKit, found: &mut Violations) {
    let field = "shares_9p";
    if let Some(dir) = root_dir(description) {
        found.collect(check_escaped_path("root", dir));
        if description.shares_9p.iter().any(|share| share.tag == ROOT_TAG) {
            found.add(ConfigError::DuplicateMountTag { tag: ROOT_TAG.to_owned() });
        }
    }
    for (index, share) in description.shares_9p.iter().enumerate() {
        // The guest would find only the first one.
        if description.shares_9p[..index].iter().any(|other| other.tag == share.tag) {
            found.add(ConfigError::DuplicateMountTag { tag: share.tag.clone() });
        }
        if let Share9pSource::Path(path) = &share.source {
            found.collect(check_escaped_path(field, path));
        }
        found.collect(check_text(field, &share.tag).and_then(|tag| check_length(MAX_TAG, field, tag)));
    }
}

fn check_virtiofs(description: &HyperKit, found: &mut Violations) {
    let field = "shares_virtiofs";
    let tags_9p = description.shares_9p.iter().map(|share| &share.tag);
    let tags: Vec<_> = tags_9p.chain(description.shares_virtiofs.iter().map(|share| &share.tag)).collect();
    for (index, share) in description.shares_virtiofs.iter().enumerate() {
        if tags[..description.shares_9p.len() + index].contains(&&share.tag) {
            found.add(ConfigError::DuplicateMountTag { tag: share.tag.clone() });
        }
        found.collect(check_path(field, &share.path));
        found.collect(check_text(field, &share.tag).and_then(|tag| check_length(MAX_VIRTIOFS_TAG, field, tag)));
    }
}

fn check_internal_networks(description: &HyperKit, found: &mut Violations) {
    let (field, networks) = ("internal_networks", &description.internal_networks);
    if !networks.is_empty() && description.state_dir.is_none() {
        found.add(ConfigError::StateDirRequired { field });
    }
    for (index, InternalNetwork { dir, number }) in networks.iter().enumerate() {
        let limit = MAX_SOCKET - LONGEST_SOCKET.len();
        found.collect(check_path(field, dir).and_then(|path| check_length(limit, field, path)));
        let invalid = |reason| ConfigError::InvalidInternalNetwork { path: dir.clone(), reason };
        if !NUMBERS.contains(number) {
            found.add(invalid(INVALID_NUMBER));
        }
        if networks[..index].iter().any(|other| other.dir == *dir) {
            found.add(invalid("it occurs twice"));
        }
    }
}

/// TCP and UDP ports: none is 0, and each port of the host is used once.
fn check_ports(description: &HyperKit, found: &mut Violations) {
    let mut ports: Vec<_> = description.port_forwards.iter().map(|forward| (forward.protocol, forward.host)).collect();
    ports.extend(description.gdb_port.map(|port| (Protocol::Tcp, port)));
    for (index, &(protocol, port)) in ports.iter().enumerate() {
        if port != 0 && ports[..index].contains(&(protocol, port)) {
            found.add(ConfigError::DuplicateHostPort { port });
        }
    }
    let zero_9p = description.shares_9p.iter().any(|share| share.source == Share9pSource::Port(0));
    let zero_forward = description.port_forwards.iter().any(|forward| forward.guest == 0);
    for (field, is_zero) in
        [("gdb_port", description.gdb_port == Some(0)), ("shares_9p", zero_9p), ("port_forwards", zero_forward)]
    {
        if is_zero {
            found.add(ConfigError::ZeroPort { field });
        }
    }
}

fn check_vsock(description: &HyperKit, found: &mut Violations) {
    let (cid, ports) = (description.vsock_guest_cid, &description.vsock_ports);
    if !CIDS.contains(&cid) {
        found.add(ConfigError::InvalidCid { value: cid, min: *CIDS.start(), max: *CIDS.end() });
    }
    if ports.len() > MAX_VSOCK_PORTS {
        found.add(ConfigError::TooManyPorts { field: "vsock_ports", count: ports.len(), max: MAX_VSOCK_PORTS });
    }
    for &value in ports.iter().filter(|&&port| port > MAX_VSOCK_PORT) {
        found.add(ConfigError::InvalidVsockPort { value, max: MAX_VSOCK_PORT });
    }
    let field = if description.vsock_dir.is_some() { "vsock_dir" } else { "state_dir" };
    let dir = utf8(field, description.vsock_sockets_dir());
    found.collect(dir.and_then(|dir| check_length(MAX_VSOCK_DIR, field, dir)));
}

fn check_disks(description: &HyperKit, found: &mut Violations) {
    let mut images = Vec::<(PathBuf, bool)>::new();
    for (index, image) in description.disks.iter().enumerate() {
        if let Some(path) = &image.path {
            found.collect(file_url(path).and_then(|_| check_path("disks", path)));
        }
        if let Some(DiskFormat::Qcow2(QcowOptions { stats, tool, .. })) = &image.format {
            if let Some(stats) = stats {
                found.collect(check_text("disks", stats));
            }
            if let Some(tool) = tool {
                found.collect(check_path("disks", tool));
            }
        }
        let Some(path) = found.collect(image.image_path(index, description.state_dir.as_deref())) else { continue };
        images.push((path.clone(), image.only_reads_image()));
        if image.overlay {
            let name = utf8("disks", &path).and_then(|name| check_length(MAX_BACKING_FILE, "disks", name));
            found.collect(name);
        }
        if let Some(value) = image.size_mib.filter(|&size| bytes(size).is_none()) {
            found.add(ConfigError::InvalidDiskSize { path: path.clone(), value });
        }
        if let Some(DiskFormat::Qcow2(options)) = &image.format {
            check_qcow_options(&path, options, found);
        }
        if let Some(value) = image.sector_size.filter(|size| !size.is_valid()) {
            found.add(ConfigError::InvalidSectorSize { path, value });
        }
        // Values of other versions. Without them it would be a different disk.
        let keys = ["format", "base_format", "driver", "OnFlush"];
        for (key, value) in image.unknown.iter().filter(|(key, _)| keys.contains(&&***key)) {
            found.add(ConfigError::UnknownSetting { key: format!("disks.{key}: {value}") });
        }
    }
    found.collect(reject_duplicates(&images, |path, other| path == other));
}

/// Refuses options that hyperkit's qcow2 driver refuses. The driver reads signed 64-bit numbers.
fn check_qcow_options(path: &Path, options: &QcowOptions, found: &mut Violations) {
    let numbers = [("compact_after", options.compact_after), ("keep_erased", options.keep_erased)];
    let too_large = numbers.into_iter().filter(|(_, number)| i64::try_from(*number).is_err());
    let mut refused: Vec<_> = too_large.map(|(option, number)| (option, number.to_string())).collect();
    let is_address = |stats: &str| match stats.split_once(':') {
        Some(("unix", path)) => !path.is_empty(),
        Some(("tcp", port)) => port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok(),
        _ => false,
    };
    refused.extend(
        options
            .stats
            .clone()
            .filter(|stats| check_text("disks", stats).is_ok() && !is_address(stats))
            .map(|stats| ("stats", stats)),
    );
    for (option, value) in refused {
        found.add(ConfigError::InvalidQcowOption { path: path.to_owned(), option, value });
    }
}

fn check_boot_source(description: &HyperKit) -> Result<(), ConfigError> {
    let sources = [
        ("kernel", description.kernel.is_some()),
        ("bootrom", description.bootrom.is_some()),
        ("multiboot", description.multiboot.is_some()),
    ];
    let mut set = sources.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field);
    let first = set.next().ok_or(ConfigError::Missing { field: "kernel" })?;
    let initrd = description.initrd.as_ref().filter(|_| first != "kernel").map(|_| "initrd");
    match set.next().or(initrd) {
        Some(second) => Err(ConfigError::ConflictingBootSources { first, second }),
        None => Ok(()),
    }
}
