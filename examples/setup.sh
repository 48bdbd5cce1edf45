#!/bin/sh
# Sets up what booting needs: QEMU (a Debian package), and a small Linux guest in target/guest/ (vmlinuz, initrd.img).
# With --tests also what the tests need: makers of images, a UEFI firmware, and in target/tools/ vhost-device-vsock.
# Safe to run again; does nothing when everything is there.
set -eu
cd "$(dirname "$0")/.."
guest=$PWD/target/guest
guest_source=$PWD/examples/guest

case ${1:-} in
--tests) tests=yes ;;
'') tests= ;;
*) echo "usage: examples/setup.sh [--tests]" >&2; exit 2 ;;
esac

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The guest is made again when this script or what goes into the guest has changed.
# Of this script only what makes the guest counts, which is behind this line.
stamp=$(sed "1,/^guest_is_made/d" examples/setup.sh | cat - examples/guest/* | cksum)
guest_is_made() {
    [ -s "$guest/vmlinuz" ] && [ -s "$guest/initrd.img" ] && [ "$(cat "$guest/stamp" 2>/dev/null)" = "$stamp" ]
}

if ! have apt-get; then
    if [ "$(uname)" = Darwin ] && ! have qemu-system-x86_64 && ! have hyperkit; then
        have brew || die "no VMM here: install Homebrew and run this again, or put hyperkit on PATH"
        say "installing QEMU with Homebrew"
        brew install qemu
    fi
    guest_is_made && exit 0
    die "the test guest is made of Debian packages, which needs apt-get: run this on Debian or Ubuntu and copy
       target/guest/ here, or give the examples a kernel and an initrd of your own"
fi

find_missing() {
    hash -r # the shell remembers where programs were
    missing=
    have qemu-system-x86_64 || missing="$missing qemu-system-x86"
    if [ "$tests" ]; then
        have genisoimage || missing="$missing genisoimage"
        have qemu-img || missing="$missing qemu-utils"
        [ -e /usr/share/ovmf/OVMF.fd ] || missing="$missing ovmf"
        # For programs that run in the guest.
        if [ "$(uname -m)" != x86_64 ] && ! have x86_64-linux-gnu-gcc; then
            missing="$missing gcc-x86-64-linux-gnu libc6-dev-amd64-cross"
        fi
    fi
    have cpio || missing="$missing cpio"
    have cc || missing="$missing gcc libc6-dev" # rustc links with it
    # Newer kernels' modules are packed.
    have xz || missing="$missing xz-utils"
    if grep -qs '^ID=ubuntu' /etc/os-release && ! have zstd; then missing="$missing zstd"; fi
}
updated=
for _ in once again; do # an older QEMU may push out the qemu-utils of a newer one
    find_missing
    [ "$missing" ] || break
    root=
    if [ "$(id -u)" != 0 ]; then
        have sudo || die "these packages are missing and there is no sudo: install them as root:$missing"
        root=sudo
    fi
    say "installing$missing (some 100 MB, a minute at most on a usual line)"
    [ "$updated" ] || $root apt-get -qq update
    updated=yes
    # shellcheck disable=SC2086  # a list of packages
    $root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing
done

# This is the version that was tried.
if [ "$tests" ] && ! have vhost-device-vsock && ! [ -x target/tools/bin/vhost-device-vsock ]; then
    have cargo || die "cargo is missing: install Rust with rustup, and run this again"
    say "building vhost-device-vsock, a minute"
    cargo install --quiet --locked --version 0.3.0 --root target/tools vhost-device-vsock
fi

if guest_is_made; then
    say "all set: $(qemu-system-x86_64 --version | head -n 1), guest in target/guest/"
    exit 0
fi

# Everything is prepared beside target/guest/ and renamed into place whole.
mkdir -p "$PWD/target"
work=$(mktemp -d "$PWD/target/guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
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
    apt-get -qq $apt_options update
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

say "downloading $kernel and busybox-static, 71 MB"
# shellcheck disable=SC2086
(cd "$work/debs" && apt-get -q $apt_options download "$kernel" busybox-static $extra) ||
    die "could not download the guest's packages: run 'apt-get update' and try again"

say "making the guest"
root=$work/root
for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work" --wildcards './boot/vmlinuz*' './lib/modules/*.ko*' \
        './usr/lib/modules/*.ko*' './bin/busybox' './usr/bin/busybox' 2>/dev/null || true # not every package has each
done
cp "$work"/boot/vmlinuz* "$work/out/vmlinuz"
mkdir -p "$root/bin" "$root/etc" "$root/lib/modules" "$root/proc" "$root/sys" "$root/dev" "$root/mnt" "$root/tmp"
find "$work/bin" "$work/usr/bin" -name busybox -exec cp {} "$root/bin/busybox" \; 2>/dev/null || true
[ -x "$root/bin/busybox" ] || die "the busybox-static package holds no busybox"
# The names that the scripts in the guest start with; the shell knows the other applets itself.
for applet in sh init mount; do ln -s busybox "$root/bin/$applet"; done
cp "$guest_source/init" "$root/init"
cp "$guest_source/resize" "$root/bin/resize"
cp "$guest_source/inittab" "$guest_source/rc" "$guest_source/report" "$guest_source/udhcpc" "$guest_source/power-button" \
    "$guest_source/modules" "$root/etc/"
chmod 755 "$root/init" "$root/bin/resize" "$root"/etc/*
while read -r module; do # built into the kernel where there is no file
    file=$(find "$work/lib/modules" "$work/usr/lib/modules" -name "$module.ko*" 2>/dev/null | head -n 1)
    case $file in
    *.ko) cp "$file" "$root/lib/modules/" ;;
    *.ko.xz) xz -dc "$file" > "$root/lib/modules/$module.ko" ;;
    *.ko.zst) zstd -qdc "$file" > "$root/lib/modules/$module.ko" ;;
    esac
done < "$guest_source/modules"
(cd "$root" && find . > "$work/names" && cpio --quiet -o -H newc -R 0:0 < "$work/names" > "$work/initrd")
gzip -9nc "$work/initrd" > "$work/out/initrd.img"
printf '%s\n' "$stamp" > "$work/out/stamp"

rm -rf "$guest"
mv "$work/out" "$guest"
say "all set: $(qemu-system-x86_64 --version | head -n 1), guest in target/guest/ ($kernel)"
