#!/bin/sh
# Sets up what booting needs; see the help text below.
set -eu
caller_dir=$PWD
CDPATH= cd "$(dirname "$0")/.."
guest_source=$PWD/examples/guest

help() {
    cat <<'END'
usage: examples/setup.sh [--arch amd64|arm64|both] [--tests] [--guest DIR]

Sets up what the examples need. It says what it will do before it does it, and does nothing if everything is there. It
can be interrupted at any time, and run again.

  - On Debian and Ubuntu it installs with apt-get (with sudo, if you are not root) what is missing of QEMU
    (qemu-system-x86 for amd64 guests, qemu-system-arm for arm64 ones: 40 MB with its libraries, 10 MB if the other
    one is there), cpio, xz-utils and a C linker (50 MB). If the kernel is packed with zstd or lz4, it installs that
    program, too (1 MB). For a guest of another architecture than the host's, it installs the C compiler for that
    architecture (53 MB) and, with rustup, Rust's standard library for it (30 MB).
  - It downloads a Linux kernel and busybox (on Debian 12, 72 MB for amd64 and 61 MB for arm64; newer ones have up to
    110 MB, and Ubuntu's more), and makes of them a small guest in target/guest/ (up to 80 MB), without root. For a
    guest of another architecture than the host's, it also downloads package lists (15 MB), which it deletes again;
    those of the host stay as they are. The guest contains the agent, a program of this repository, which Cargo
    builds. An amd64 kernel is there twice: packed (vmlinuz), and unpacked (vmlinux), which QEMU boots sooner. An
    arm64 kernel is there unpacked (vmlinuz). A second initial RAM disk, host-root.img, is for guests that execute the
    host's programs.
  - On macOS it installs QEMU with Homebrew. The guest has to be made on Debian or Ubuntu, and its directory to be
    copied.

  --arch amd64|arm64|both  the architecture of the guest (default: the host's; with --tests, both). The guest of the
            host's architecture is made in target/guest/, the other one in target/guest-amd64/ or target/guest-arm64/
  --tests   also what the tests of these guests need: genisoimage, qemu-utils, strace, python3, a UEFI firmware (ovmf,
            8 MB, or qemu-efi-aarch64, 3 MB to download and 260 MB on the disk), and virtiofsd if QEMU's package has
            none (50 MB in all); vhost-device-vsock, which Cargo builds in target/tools/ in a minute (to use vsock
            outside of the tests, put target/tools/bin on your PATH); and for amd64 a disk image of Debian that
            answers ssh, made in target/cloud-image/ from 150 MB of packages in two minutes.
  --guest DIR  makes the guest in DIR instead of target/guest/; with --arch both, the one of the other architecture in
            DIR-amd64 or DIR-arm64. An installed exec looks in ~/.local/share/hyperkit/guest
  --help    prints this text

It takes about a minute on a usual line. To undo it, delete target/guest, target/guest-amd64, target/guest-arm64,
target/tools and target/cloud-image, and remove the packages.
END
}

usage() {
    echo "setup: $1; examples/setup.sh --help shows how" >&2
    exit 2
}

# Architectures have their names of Debian here. The guest of the architecture `native` is in target/guest/.
case $(uname -m) in
x86_64 | amd64) host=amd64 native=amd64 ;;
aarch64 | arm64) host=arm64 native=arm64 ;;
*) host=other native=amd64 ;;
esac
arches= tests= wants_help= given_guest=
while [ $# -gt 0 ]; do
    case $1 in
    --arch)
        case ${2:-} in
        amd64 | x86_64) arches=amd64 ;;
        arm64 | aarch64) arches=arm64 ;;
        both) arches="amd64 arm64" ;;
        *) usage "--arch takes amd64, arm64 or both" ;;
        esac
        shift
        ;;
    --tests) tests=yes ;;
    --guest)
        [ "${2:-}" ] || usage "--guest takes a directory"
        case $2 in /*) given_guest=${2%/} ;; *) given_guest=$caller_dir/${2%/} ;; esac
        shift
        ;;
    --help | -h) wants_help=yes ;;
    *) usage "unknown flag $1" ;;
    esac
    shift
done
[ "$arches" ] || arches=${tests:+amd64 arm64}
arches=${arches:-$native}
if [ "$wants_help" ]; then
    help
    exit 0
fi

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
wants() { case " $arches " in *" $1 "*) ;; *) return 1 ;; esac }

# Sets what differs between the architectures to that of the architecture $1.
select_arch() {
    arch=$1
    case $arch in
    amd64)
        machine=x86_64 console=ttyS0 kernels="vmlinuz vmlinux"
        qemu_package=qemu-system-x86 cross_packages="gcc-x86-64-linux-gnu libc6-dev-amd64-cross"
        ;;
    arm64)
        machine=aarch64 console=ttyAMA0 kernels=vmlinuz
        qemu_package=qemu-system-arm cross_packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
        ;;
    esac
    qemu=qemu-system-$machine rust_target=$machine-unknown-linux-gnu cross_gcc=$machine-linux-gnu-gcc
    guest=${given_guest:-$PWD/target/guest}
    [ "$arch" = "$native" ] || { [ "$given_guest" ] && [ "$arches" = "$arch" ]; } || guest=$guest-$arch
}

# The directory is replaced as a whole.
for arch in $arches; do
    select_arch "$arch"
    if [ -e "$guest" ] && ! [ -e "$guest/stamp" ] && ! rmdir "$guest" 2>/dev/null; then
        die "not a guest of setup.sh: $guest; choose another directory, or delete this one"
    fi
done

dots= work=
clean_up() {
    [ -z "$dots" ] || kill "$dots" 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' HUP INT PIPE TERM # PIPE: nobody reads the output any more

# Says what is being done, and prints a dot every two seconds while the command runs. SIGKILL of this script ends the dots, too.
step() {
    printf 'setup: %s ' "$1"
    shift
    (while sleep 2 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do printf .; done) &
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
sources=$(sed '1,/^# --- The guest/d' examples/setup.sh |
    cat - $(find examples/guest $agent_sources -type f | LC_ALL=C sort) | cksum)
guest_is_made() { # of the selected architecture
    for file in $kernels initrd.img host-root.img hyperkit-agent; do
        [ -s "$guest/$file" ] || return 1
    done
    [ "$(cat "$guest/stamp" 2>/dev/null)" = "$sources $arch" ]
}
guests_are_made() {
    for arch in $arches; do
        select_arch "$arch"
        guest_is_made || return 1
    done
}

if ! have apt-get; then
    if [ "$(uname)" = Darwin ]; then
        for arch in $arches; do
            select_arch "$arch"
            have "$qemu" && continue
            [ "$arch" = amd64 ] && have hyperkit && continue
            have brew || die "no hypervisor for $arch guests here: install Homebrew and run this again"
            say "this will install QEMU with Homebrew (a few 100 MB), which takes some minutes"
            brew install qemu
        done
    fi
    for arch in $arches; do
        select_arch "$arch"
        guest_is_made || die "the guest is made of Debian packages, which needs apt-get: run 'examples/setup.sh --arch $arch' on
       Debian or Ubuntu, and copy the directory of the guest, which it names, to $guest/ here;
       or give the examples a kernel and an initrd of your own"
    done
    exit 0
fi

missing= megabytes=0
lacks() { # so many MB, packages
    megabytes=$((megabytes + $1))
    shift
    missing="$missing $*"
}
# Whether there is a C compiler that links static programs for the selected architecture.
has_compiler() {
    [ "$arch" = "$host" ] || case $("$cross_gcc" -print-file-name=libc.a 2>/dev/null) in /*) ;; *) return 1 ;; esac
}
has_rust_target() { [ -d "$(rustc --print target-libdir --target "$rust_target" 2>/dev/null)" ]; }
find_missing() {
    hash -r # the shell remembers where programs were
    missing= megabytes=0
    qemu_megabytes=40
    if have qemu-system-x86_64 || have qemu-system-aarch64; then qemu_megabytes=10; fi
    for arch in $arches; do
        select_arch "$arch"
        if have "$qemu"; then
            # Debian 12 has it in QEMU's package.
            if [ "$tests" ] && ! have virtiofsd && ! [ -x /usr/libexec/virtiofsd ] && ! [ -x /usr/lib/qemu/virtiofsd ]; then
                case " $missing " in *" virtiofsd "*) ;; *) lacks 3 virtiofsd ;; esac
            fi
        else
            lacks $qemu_megabytes $qemu_package
            qemu_megabytes=10
        fi
        # For the agent, and for programs of the tests that run in the guest.
        # shellcheck disable=SC2086  # several packages
        if { [ "$tests" ] || ! guest_is_made; } && ! has_compiler; then lacks 53 $cross_packages; fi
    done
    if [ "$tests" ]; then
        have genisoimage || lacks 1 genisoimage
        have qemu-img || lacks 4 qemu-utils
        if wants amd64 && ! [ -e /usr/share/ovmf/OVMF.fd ]; then lacks 8 ovmf; fi
        if wants arm64 && ! [ -e /usr/share/AAVMF/AAVMF_CODE.fd ]; then lacks 3 qemu-efi-aarch64; fi
        have strace || lacks 2 strace
        have python3 || lacks 30 python3 # a program of the host that tests execute in a guest
    fi
    have cpio || lacks 1 cpio
    have cc || lacks 50 gcc libc6-dev # rustc links with it
    # Newer kernels' modules are packed.
    have xz || lacks 1 xz-utils
    if grep -qs '^ID=ubuntu' /etc/os-release && ! have zstd; then lacks 1 zstd; fi
}
lacks_vsock() { [ "$tests" ] && ! have vhost-device-vsock && ! [ -x target/tools/bin/vhost-device-vsock ]; }
# mmdebstrap makes an image of the host's architecture, and its test is one of amd64.
wants_cloud_image() { [ "$tests" ] && wants amd64 && [ "$host" = amd64 ]; }

find_missing
as_root=
needs_root() { # packages
    [ "$(id -u)" != 0 ] || return 0
    have sudo || die "these packages are missing and there is no sudo: install them as root: $*"
    as_root=sudo
}
# shellcheck disable=SC2086  # several packages
[ -z "$missing" ] || needs_root $missing
{ guests_are_made && ! lacks_vsock; } || have cargo ||
    die "cargo is missing, which builds the guest's agent: install Rust with rustup (https://rustup.rs), and run this again"
if [ "$missing" ] || lacks_vsock || ! guests_are_made; then
    say "this takes about a minute on a usual line, and will"
    [ -z "$missing" ] || say "- install${as_root:+, with $as_root,} these packages and what they need, some $megabytes MB:$missing"
    ! lacks_vsock || say "- build vhost-device-vsock in target/tools/, a minute more"
    ! wants_cloud_image || [ -e target/cloud-image/disk.qcow2 ] ||
        say "- make a disk image of Debian for the test of ssh in target/cloud-image/, two minutes more"
    for arch in $arches; do
        select_arch "$arch"
        ! guest_is_made || continue
        if ! has_rust_target; then
            have rustup || die "the guest's agent needs Rust's standard library for $rust_target, which this Rust lacks,
       and there is no rustup to install it: install Rust with rustup (https://rustup.rs), and run this again"
            say "- install Rust's standard library for $arch with 'rustup target add $rust_target', 30 MB"
        fi
        say "- download a Linux kernel and busybox for $arch, 61 to 110 MB (more on Ubuntu), and make of them a guest in $guest/"
    done
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
    step "building vhost-device-vsock" \
        cargo install --quiet --locked --version 0.3.0 --root target/tools vhost-device-vsock
fi

! wants_cloud_image || tests/data/make-cloud-image.sh

# --- The guest. Everything is prepared beside its directory and renamed into place whole.

# Package lists: the system's own where they have the architecture, else (no root, never updated, or a guest of another
# architecture) private ones. `apt-get` and `apt-cache` with the options that choose them are $apt.
choose_package_lists() {
    apt_config=$work/apt.conf
    printf 'APT::Sandbox::User "%s";\n' "$(id -un)" > "$apt_config"
    ! apt-cache show "busybox-static:$arch" >/dev/null 2>&1 || return 0
    mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
    : > "$work/apt/state/status"
    # What the system does after an update, such as to index the programs of its packages, is not for these lists.
    cat >> "$apt_config" <<END
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "$arch";
APT::Architectures "$arch";
Acquire::Languages "none";
Dir::State "$work/apt/state";
Dir::State::status "$work/apt/state/status";
Dir::Cache "$work/apt/cache";
END
    # Ubuntu has amd64 in one archive and all others in another. Debian has them in one.
    ubuntu=$(sed -n 's/^UBUNTU_CODENAME=//p' /etc/os-release 2>/dev/null || true)
    if [ "$ubuntu" ] && [ "$arch" != "$(dpkg --print-architecture)" ]; then
        archive=http://ports.ubuntu.com/ubuntu-ports
        [ "$arch" != amd64 ] || archive=http://archive.ubuntu.com/ubuntu
        for suite in "$ubuntu" "$ubuntu-updates" "$ubuntu-security"; do
            echo "deb [signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg] $archive $suite main universe"
        done > "$work/apt/sources.list"
        printf 'Dir::Etc::%s;\n' "sourcelist \"$work/apt/sources.list\"" 'sourceparts "/dev/null"' >> "$apt_config"
    fi
    say "fetching package lists of $arch, some 15 MB"
    # The packages may be found although a source of somebody else has failed.
    apt-get $quiet -c "$apt_config" update || say "not all package lists could be fetched"
}
depends() { # the first dependency of package $1 that matches the pattern $2
    apt-cache -c "$apt_config" depends "$1:$arch" 2>/dev/null |
        sed -n "s/.*Depends: \($2\)\$/\1/p" | sed "s/:$arch\$//" | head -n 1
}
choose_packages() {
    kernel=$(depends "linux-image-$arch" 'linux-image-[^ ]*')           # Debian
    packages="$kernel:$arch busybox-static:$arch"
    if [ -z "$kernel" ]; then
        kernel=$(depends linux-image-generic 'linux-image-[0-9][^ ]*')  # Ubuntu, whose modules are packages of their own
        packages="$kernel:$arch busybox-static:$arch
            linux-modules-${kernel#linux-image-}:$arch linux-modules-extra-${kernel#linux-image-}:$arch"
    fi
    [ -n "$kernel" ] ||
        die "no kernel package for $arch found: neither linux-image-$arch nor linux-image-generic is known to apt"
    # shellcheck disable=SC2086  # several packages
    package_megabytes=$(apt-get -c "$apt_config" --print-uris download $packages |
        awk '{ bytes += $3 } END { printf "%d", bytes / 1000000 + 1 }')
}
download() {
    # shellcheck disable=SC2086  # several packages
    (cd "$work/debs" && apt-get ${quiet:+-qq} -c "$apt_config" download $packages) ||
        die "could not download the guest's packages: run 'apt-get update' and try again"
}
unpack() {
    for deb in "$work"/debs/*.deb; do
        dpkg-deb -x "$deb" "$unpacked"
    done
}

# Kernels are unpacked here: an emulated CPU takes 2 s to unpack an x86 one, and QEMU before 9.0 does not unpack all formats of arm64.
field() { od -An -v --endian=little -t "u$2" -j "$1" -N "$2" "$work/out/vmlinuz" | tr -d ' '; } # position, length
bytes() { od -An -v -t x1 -j "$1" -N "$2" "$work/out/vmlinuz" | tr -d ' \n'; }                  # position, length
payload() { tail -c "+$((payload_start + 1))" "$work/out/vmlinuz" | head -c "$payload_length"; }
# Chooses the program that unpacks the payload.
choose_unpacker() {
    case $(bytes "$payload_start" 4) in
    fd377a58) unpacker=xz package=xz-utils ;;
    28b52ffd) unpacker=zstd package=zstd ;;
    02214c18) unpacker=lz4 package=lz4 ;;
    1f8b08*) unpacker=gzip package=gzip ;;
    *) die "$kernel is packed in an unknown format, so the guest cannot have it unpacked" ;;
    esac
    have "$unpacker" || install_packages "$package"
}
unpack_payload() { payload | "$unpacker" -dc > "$work/unpacked-kernel"; }
unpack_x86_kernel() {
    # The boot header says where the packed part is: setup_sects, payload_offset and payload_length in
    # Documentation/arch/x86/boot.rst of Linux.
    payload_start=$((($(field 497 1) + 1) * 512 + $(field 584 4)))
    payload_length=$(field 588 4)
    choose_unpacker
    # Behind the packed kernel, all formats but gzip have its length in 4 bytes.
    [ "$unpacker" = gzip ] || payload_length=$((payload_length - 4))
    step "unpacking vmlinux with $unpacker" unpack_payload
    mv "$work/unpacked-kernel" "$work/out/vmlinux"
    [ "$(head -c 4 "$work/out/vmlinux" | tail -c 3)" = ELF ] || die "could not unpack the kernel with $unpacker"
}
unpack_arm64_kernel() {
    # The magic number of an Image: Documentation/arch/arm64/booting.rst of Linux.
    [ "$(bytes 56 4)" != 41524d64 ] || return 0
    payload_start=0 payload_length=$(wc -c < "$work/out/vmlinuz")
    # An EFI zboot image says where the packed part is: drivers/firmware/efi/libstub/zboot-header.S of Linux.
    if [ "$(bytes 4 4)" = 7a696d67 ]; then payload_start=$(field 8 4) payload_length=$(field 12 4); fi
    choose_unpacker
    step "unpacking the kernel with $unpacker" unpack_payload
    mv "$work/unpacked-kernel" "$work/out/vmlinuz"
    [ "$(bytes 56 4)" = 41524d64 ] || die "could not unpack the kernel with $unpacker"
}

# Static, since the guest has no libraries, and at a fixed address: relocations take 70 ms of each start on an emulated CPU.
# The linker is named for guests of other architectures than the host's.
build_agent() {
    [ "$arch" = "$host" ] || eval "export CARGO_TARGET_$(echo "$rust_target" | tr a-z- A-Z_)_LINKER=$cross_gcc"
    RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --quiet --locked --package hyperkit-agent --profile agent \
        --target "$rust_target" --target-dir "$PWD/target/agent"
    cp "target/agent/$rust_target/agent/hyperkit-agent" "$work/out/"
}
fill_root() {
    mkdir -p "$root/bin" "$root/etc" "$root/lib/modules" "$root/proc" "$root/sys" "$root/dev" "$root/mnt" "$root/tmp"
    find "$unpacked" -path '*/bin/busybox' -exec cp {} "$root/bin/busybox" \;
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
    cp "$guest_source/resize" "$work/out/hyperkit-agent" "$root/bin/"
    cp "$guest_source/rc" "$guest_source/report" "$guest_source/udhcpc" "$guest_source/power-button" "$guest_source/modules" \
        "$root/etc/"
    sed "s/CONSOLE/$console/" "$guest_source/inittab" > "$root/etc/inittab"
    chmod 755 "$root/init" "$root/bin/resize" "$root"/etc/*
}
copy_module() { # module $1 to file $2; built into the kernel where there is no file
    file=$(find "$unpacked/lib/modules" "$unpacked/usr/lib/modules" -name "$1.ko*" 2>/dev/null | head -n 1)
    case $file in
    *.ko) cp "$file" "$2" ;;
    *.ko.xz) xz -dc "$file" > "$2" ;;
    *.ko.zst) zstd -qdc "$file" > "$2" ;;
    esac
}
# The second initial RAM disk makes a directory of the host the guest's root. The agent is its only program; it loads the
# modules in the order of their numbers.
copy_modules() {
    while read -r module; do
        copy_module "$module" "$root/lib/modules/$module.ko"
    done < "$guest_source/modules"
    mkdir -p "$host_root/modules" "$host_root/proc" "$host_root/lower" "$host_root/layer" "$host_root/root"
    cp "$work/out/hyperkit-agent" "$host_root/init"
    number=10
    while read -r module; do
        copy_module "$module" "$host_root/modules/$number-$module.ko"
        number=$((number + 1))
    done < "$guest_source/root-modules"
}
pack() { # the directory $1 to the initial RAM disk $2
    (cd "$1" && find . > "$work/names" && cpio --quiet -o -H newc -R 0:0 < "$work/names" > "$work/initrd")
    gzip -9nc "$work/initrd" > "$work/out/$2"
}

make_guest() { # of the selected architecture
    mkdir -p "$(dirname "$guest")"
    work=$(mktemp -d "$guest.XXXXXX")
    root=$work/root host_root=$work/host-root unpacked=$work/unpacked
    mkdir "$work/debs" "$work/out" "$root" "$unpacked"
    if ! has_rust_target; then
        say "installing Rust's standard library for $arch, 30 MB"
        rustup target add "$rust_target"
    fi
    choose_package_lists
    choose_packages
    what="downloading $kernel and busybox-static for $arch, $package_megabytes MB"
    if [ "$quiet" ]; then
        step "$what" download
    else
        say "$what"
        download
    fi
    step "unpacking the kernel, its modules and busybox" unpack
    cp "$unpacked"/boot/vmlinuz* "$work/out/vmlinuz"
    case $arch in
    amd64) unpack_x86_kernel ;;
    arm64) unpack_arm64_kernel ;;
    esac
    step "building the guest's agent" build_agent
    fill_root
    step "copying $(grep -c . "$guest_source/modules") drivers for the guest's devices" copy_modules
    step "packing the initial RAM disk" pack "$root" initrd.img
    step "packing the one for the host's programs" pack "$host_root" host-root.img
    printf '%s\n' "$sources $arch" > "$work/out/stamp"
    [ ! -e "$guest" ] || mv "$guest" "$work/previous"
    mv "$work/out" "$guest"
    rm -rf "$work"
    work=
}

for arch in $arches; do
    select_arch "$arch"
    guest_is_made || make_guest
    say "all set: $("$qemu" --version | head -n 1), guest for $arch in $guest/"
done
