#!/bin/sh
# Sets up what booting needs; see the help text below.
set -eu
caller_dir=$PWD
CDPATH= cd "$(dirname "$0")/.."
guest=$PWD/target/guest
guest_source=$PWD/examples/guest

help() {
    cat <<'END'
usage: examples/setup.sh [--tests] [--guest DIR]

Sets up what the examples need. It says what it will do before it does it, and does nothing if everything is there.

  - On Debian and Ubuntu it installs what is missing of qemu-system-x86 (40 MB with its libraries), cpio, xz-utils and a
    C linker (50 MB) with apt-get; with sudo, if you are not root. If the kernel is packed with zstd or lz4, it installs that
    program, too (1 MB).
  - It downloads a Linux kernel and busybox (71 MB), and makes of them a small guest in target/guest/ (47 MB, or 80 MB if the
    kernel is not packed with xz), without root. The guest contains the agent, a program of this repository, which Cargo
    builds. The kernel is there twice: packed (vmlinuz), and unpacked (vmlinux), which QEMU boots sooner. A second initial
    RAM disk, host-root.img, is for guests that execute the host's programs.
  - On macOS it installs QEMU with Homebrew. The guest has to be made on Debian or Ubuntu, and target/guest/ to be copied.

  --tests   also what the tests need: genisoimage, qemu-utils, ovmf, strace, python3, and virtiofsd if QEMU's package has none
            (50 MB); vhost-device-vsock, which Cargo builds in target/tools/ in a minute (to use vsock outside of the tests,
            put target/tools/bin on your PATH); and a disk image of Debian that answers ssh, made in target/cloud-image/ from
            150 MB of packages in two minutes.
  --guest DIR  makes the guest in DIR instead of target/guest/. An installed exec looks in ~/.local/share/hyperkit/guest
  --help    prints this text

It takes about a minute on a usual line. To undo it, delete target/guest, target/tools and
target/cloud-image, and remove the packages.
END
}

usage() {
    echo "setup: $1; examples/setup.sh --help shows how" >&2
    exit 2
}
tests= wants_help=
while [ $# -gt 0 ]; do
    case $1 in
    --tests) tests=yes ;;
    --guest)
        [ "${2:-}" ] || usage "--guest takes a directory"
        case $2 in /*) guest=$2 ;; *) guest=$caller_dir/$2 ;; esac
        shift
        ;;
    --help | -h) wants_help=yes ;;
    *) usage "unknown flag $1" ;;
    esac
    shift
done
if [ "$wants_help" ]; then
    help
    exit 0
fi

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The directory is replaced as a whole.
if [ -e "$guest" ] && ! [ -e "$guest/stamp" ] && ! rmdir "$guest" 2>/dev/null; then
    die "not a guest of setup.sh: $guest; choose another directory, or delete this one"
fi

dots= work=
clean_up() {
    [ -z "$dots" ] || kill "$dots" 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# Says what is being done, and prints a dot every two seconds while the command runs.
step() {
    printf 'setup: %s ' "$1"
    shift
    (while sleep 2 >/dev/null 2>&1; do printf .; done) &
    dots=$!
    "$@"
    kill "$dots"
    dots=
    echo " done"
}

# apt-get shows its progress on a terminal, and prints lines elsewhere.
quiet=-q
[ ! -t 1 ] || quiet=

# The guest is made again when what makes it has changed: the end of this script, or what goes into the guest.
agent_sources="src/vm/command/protocol.rs src/vm/command/archive.rs"
# shellcheck disable=SC2086  # several files
stamp=$(sed '1,/^# --- The guest/d' examples/setup.sh |
    cat - $(find examples/guest $agent_sources -type f | LC_ALL=C sort) | cksum)
guest_is_made() {
    [ -s "$guest/vmlinuz" ] && [ -s "$guest/vmlinux" ] && [ -s "$guest/initrd.img" ] && [ -s "$guest/host-root.img" ] &&
        [ "$(cat "$guest/stamp" 2>/dev/null)" = "$stamp" ]
}

if ! have apt-get; then
    if [ "$(uname)" = Darwin ] && ! have qemu-system-x86_64 && ! have hyperkit; then
        have brew || die "no hypervisor here: install Homebrew and run this again, or put hyperkit on PATH"
        say "this will install QEMU with Homebrew, which takes some minutes"
        brew install qemu
    fi
    guest_is_made && exit 0
    die "the guest is made of Debian packages, which needs apt-get: run this on Debian or Ubuntu and copy
       target/guest/ here, or give the examples a kernel and an initrd of your own"
fi

missing= megabytes=0
lacks() { # so many MB, packages
    megabytes=$((megabytes + $1))
    shift
    missing="$missing $*"
}
find_missing() {
    hash -r # the shell remembers where programs were
    missing= megabytes=0
    have qemu-system-x86_64 || lacks 40 qemu-system-x86
    if [ "$tests" ]; then
        have genisoimage || lacks 1 genisoimage
        have qemu-img || lacks 4 qemu-utils
        [ -e /usr/share/ovmf/OVMF.fd ] || lacks 10 ovmf
        have strace || lacks 2 strace
        have python3 || lacks 30 python3 # a program of the host that tests execute in a guest
        # Debian 12 has it in QEMU's package.
        if have qemu-system-x86_64 && ! have virtiofsd &&
            ! [ -x /usr/libexec/virtiofsd ] && ! [ -x /usr/lib/qemu/virtiofsd ]; then
            lacks 3 virtiofsd
        fi
        # For programs that run in the guest.
        if [ "$(uname -m)" != x86_64 ] && ! have x86_64-linux-gnu-gcc; then
            lacks 60 gcc-x86-64-linux-gnu libc6-dev-amd64-cross
        fi
    fi
    have cpio || lacks 1 cpio
    have cc || lacks 50 gcc libc6-dev # rustc links with it
    # Newer kernels' modules are packed.
    have xz || lacks 1 xz-utils
    if grep -qs '^ID=ubuntu' /etc/os-release && ! have zstd; then lacks 1 zstd; fi
}
lacks_vsock() { [ "$tests" ] && ! have vhost-device-vsock && ! [ -x target/tools/bin/vhost-device-vsock ]; }

find_missing
as_root=
needs_root() { # packages
    [ "$(id -u)" != 0 ] || return 0
    have sudo || die "these packages are missing and there is no sudo: install them as root: $*"
    as_root=sudo
}
# shellcheck disable=SC2086  # several packages
[ -z "$missing" ] || needs_root $missing
if [ "$missing" ] || lacks_vsock || ! guest_is_made; then
    say "this takes about a minute on a usual line, and will"
    [ -z "$missing" ] || say "- install${as_root:+, with $as_root,} these packages and what they need, some $megabytes MB:$missing"
    ! lacks_vsock || say "- build vhost-device-vsock in target/tools/, a minute more"
    [ -z "$tests" ] || [ -e target/cloud-image/disk.qcow2 ] ||
        say "- make a disk image of Debian for the test of ssh in target/cloud-image/, two minutes more"
    guest_is_made || say "- download a Linux kernel and busybox, 71 MB, and make of them a guest in $guest/"
fi

updated=
install_packages() {
    needs_root "$@"
    say "installing $*"
    # shellcheck disable=SC2086  # several options
    [ "$updated" ] || $as_root apt-get $quiet update
    updated=yes
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get $quiet install -y --no-install-recommends "$@"
}
for _ in once again; do # an older QEMU may push out the qemu-utils of a newer one
    [ "$missing" ] || break
    # shellcheck disable=SC2086  # several packages
    install_packages $missing
    find_missing
done

# This is the version that was tried.
if lacks_vsock; then
    have cargo || die "cargo is missing: install Rust with rustup, and run this again"
    step "building vhost-device-vsock" \
        cargo install --quiet --locked --version 0.3.0 --root target/tools vhost-device-vsock
fi

[ -z "$tests" ] || tests/data/make-cloud-image.sh

all_set() { say "all set: $(qemu-system-x86_64 --version | head -n 1), guest in $guest/"; }
if guest_is_made; then
    all_set
    exit 0
fi

have cargo || die "cargo is missing, which builds the guest's agent: install Rust with rustup, and run this again"
[ "$(uname -m)" = x86_64 ] || have x86_64-linux-gnu-gcc ||
    die "the guest's agent needs a compiler for x86-64: install gcc-x86-64-linux-gnu, and run
       'rustup target add x86_64-unknown-linux-gnu'"

# --- The guest. Everything is prepared beside target/guest/ and renamed into place whole.
mkdir -p "$PWD/target"
work=$(mktemp -d "$PWD/target/guest.XXXXXX")
mkdir -p "$work/debs" "$work/root" "$work/out"

# Package lists: the system's own where they are there, else (no root, never updated, or not an amd64 system) private ones.
apt_options="-o APT::Sandbox::User=$(id -un)"
if ! apt-cache show busybox-static:amd64 >/dev/null 2>&1; then
    say "fetching package lists"
    mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
    : > "$work/apt/state/status"
    apt_options="$apt_options -o Dir::State=$work/apt/state -o Dir::State::status=$work/apt/state/status
        -o Dir::Cache=$work/apt/cache -o APT::Architecture=amd64 -o APT::Architectures=amd64"
    # shellcheck disable=SC2086
    apt-get $quiet $apt_options update
fi
depends() { # the first dependency of package $1 that matches the pattern $2
    # shellcheck disable=SC2086
    apt-cache $apt_options depends "$1" 2>/dev/null | sed -n "s/.*Depends: \($2\)\$/\1/p" | head -n 1
}
kernel=$(depends linux-image-amd64 'linux-image-[^ ]*')             # Debian
extra=
if [ -z "$kernel" ]; then
    kernel=$(depends linux-image-generic 'linux-image-[0-9][^ ]*')  # Ubuntu, whose modules are packages of their own
    extra="linux-modules-${kernel#linux-image-} linux-modules-extra-${kernel#linux-image-}"
fi
[ -n "$kernel" ] || die "no kernel package found: neither linux-image-amd64 nor linux-image-generic is known to apt"

download() {
    # shellcheck disable=SC2086
    (cd "$work/debs" && apt-get ${quiet:+-qq} $apt_options download "$kernel" busybox-static $extra) ||
        die "could not download the guest's packages: run 'apt-get update' and try again"
}
if [ "$quiet" ]; then
    step "downloading $kernel and busybox-static, 71 MB" download
else
    say "downloading $kernel and busybox-static, 71 MB"
    download
fi

root=$work/root
unpack() {
    for deb in "$work"/debs/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work" --wildcards './boot/vmlinuz*' './lib/modules/*.ko*' \
            './usr/lib/modules/*.ko*' './bin/busybox' './usr/bin/busybox' 2>/dev/null || true # not every package has each
    done
}
step "unpacking the kernel, its modules and busybox" unpack

cp "$work"/boot/vmlinuz* "$work/out/vmlinuz"

# An emulated CPU takes 2 s to unpack the kernel, so it is unpacked here. Its boot header says where the packed part is:
# setup_sects, payload_offset and payload_length in Documentation/arch/x86/boot.rst of Linux.
field() { od -An -v --endian=little -t "u$2" -j "$1" -N "$2" "$work/out/vmlinuz" | tr -d ' '; } # position, length
payload_start=$((($(field 497 1) + 1) * 512 + $(field 584 4)))
payload_length=$(field 588 4)
payload() { tail -c "+$((payload_start + 1))" "$work/out/vmlinuz" | head -c "$payload_length"; }
# Behind the packed kernel, all formats but gzip have its length in 4 bytes.
payload_length=$((payload_length - 4))
case $(payload | od -An -v -t x1 -N 4 | tr -d ' ') in
fd377a58) unpacker=xz package=xz-utils ;;
28b52ffd) unpacker=zstd package=zstd ;;
02214c18) unpacker=lz4 package=lz4 ;;
1f8b08*) unpacker=gzip package=gzip payload_length=$((payload_length + 4)) ;;
*) die "$kernel is packed in an unknown format, so it has no vmlinux for the guest" ;;
esac
have "$unpacker" || install_packages "$package"
unpack_kernel() {
    payload | "$unpacker" -dc > "$work/out/vmlinux"
    [ "$(head -c 4 "$work/out/vmlinux" | tail -c 3)" = ELF ] || die "could not unpack the kernel with $unpacker"
}
step "unpacking vmlinux with $unpacker" unpack_kernel
mkdir -p "$root/bin" "$root/etc" "$root/lib/modules" "$root/proc" "$root/sys" "$root/dev" "$root/mnt" "$root/tmp"
find "$work/bin" "$work/usr/bin" -name busybox -exec cp {} "$root/bin/busybox" \; 2>/dev/null || true
[ -x "$root/bin/busybox" ] || die "the busybox-static package holds no busybox"
# The names that the scripts in the guest start with; the shell knows the other applets itself.
for applet in sh init mount; do ln -s busybox "$root/bin/$applet"; done
# The programs that a host can execute in the guest.
for applet in awk basename cat chmod chown cp cut date dd df dirname dmesg du echo env expr false find free grep gunzip gzip \
    head hostname id ip kill ln ls md5sum mkdir mkfifo mknod mktemp mv nc od ping poweroff printf ps pwd \
    readlink reboot rm rmdir sed seq setsid sha256sum sleep sort stat stty sync tail tar tee test time timeout touch tr true \
    umount uname uniq vi wc wget which xargs yes; do
    ln -s busybox "$root/bin/$applet"
done
cp "$guest_source/init" "$root/init"
cp "$guest_source/resize" "$root/bin/resize"
cp "$guest_source/inittab" "$guest_source/rc" "$guest_source/report" "$guest_source/udhcpc" "$guest_source/power-button" \
    "$guest_source/modules" "$root/etc/"
chmod 755 "$root/init" "$root/bin/resize" "$root"/etc/*
# Static, since the guest has no libraries, and at a fixed address: relocations take 70 ms of each start on an emulated CPU.
# The linker is named for hosts of other architectures.
build_agent() {
    [ "$(uname -m)" = x86_64 ] || export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc
    RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --quiet --locked --package hyperkit-agent --profile agent \
        --target x86_64-unknown-linux-gnu --target-dir "$PWD/target/agent"
    cp target/agent/x86_64-unknown-linux-gnu/agent/hyperkit-agent "$root/bin/"
    cp "$root/bin/hyperkit-agent" "$work/out/"
}
step "building the guest's agent" build_agent
copy_module() { # module $1 to file $2; built into the kernel where there is no file
    file=$(find "$work/lib/modules" "$work/usr/lib/modules" -name "$1.ko*" 2>/dev/null | head -n 1)
    case $file in
    *.ko) cp "$file" "$2" ;;
    *.ko.xz) xz -dc "$file" > "$2" ;;
    *.ko.zst) zstd -qdc "$file" > "$2" ;;
    esac
}
# The second initial RAM disk makes a directory of the host the guest's root. The agent is its only program; it loads the
# modules in the order of their numbers.
host_root=$work/host-root
copy_modules() {
    while read -r module; do
        copy_module "$module" "$root/lib/modules/$module.ko"
    done < "$guest_source/modules"
    mkdir -p "$host_root/modules" "$host_root/proc" "$host_root/lower" "$host_root/layer" "$host_root/root"
    cp "$root/bin/hyperkit-agent" "$host_root/init"
    number=10
    while read -r module; do
        copy_module "$module" "$host_root/modules/$number-$module.ko"
        number=$((number + 1))
    done < "$guest_source/root-modules"
}
step "copying $(grep -c . "$guest_source/modules") drivers for the guest's devices" copy_modules
pack() { # the directory $1 to the initial RAM disk $2
    (cd "$1" && find . > "$work/names" && cpio --quiet -o -H newc -R 0:0 < "$work/names" > "$work/initrd")
    gzip -9nc "$work/initrd" > "$work/out/$2"
}
step "packing the initial RAM disk" pack "$root" initrd.img
step "packing the one for the host's programs" pack "$host_root" host-root.img
printf '%s\n' "$stamp" > "$work/out/stamp"

mkdir -p "$(dirname "$guest")"
rm -rf "$guest"
mv "$work/out" "$guest"
all_set
