#!/bin/sh
# Makes a disk image of Debian 12 that boots with UEFI and answers ssh: target/cloud-image/disk.qcow2, for the test of
# examples/howto/ssh.rs. It is made of Debian's packages, since a cloud image is ten times as large and boots three times as
# long under emulation. It has no cloud-init: a small unit reads the same seed.
# Needs neither root nor mounts nor loop devices, except that missing packages are installed with apt-get (and sudo).
# Safe to run again; does nothing when the image is there.
set -eu
cd "$(dirname "$0")/../.."
image=$PWD/target/cloud-image

say() { printf 'cloud image: %s\n' "$*"; }
die() { printf 'cloud image: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Some of these are in directories that are on the PATH of root only.
PATH=$PATH:/usr/sbin:/sbin
# The image is made again when this script has changed.
stamp=$(cksum <tests/data/make-cloud-image.sh)
if [ -s "$image/disk.qcow2" ] && [ "$(cat "$image/stamp" 2>/dev/null)" = "$stamp" ]; then
    say "all set: target/cloud-image/disk.qcow2"
    exit 0
fi
have apt-get || die "the image is made of Debian packages, which needs apt-get: run this on Debian or Ubuntu and copy
       target/cloud-image/ here"

missing=
need() { have "$1" || missing="$missing $2"; }
need mmdebstrap mmdebstrap
need gpg gpg # mmdebstrap looks with it whether the keyring has the archive's key
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
need fakeroot fakeroot
need mke2fs e2fsprogs
need mkfs.vfat dosfstools
need mcopy mtools
need sfdisk fdisk
need grub-mkimage grub-common
[ -d /usr/lib/grub/x86_64-efi ] || missing="$missing grub-efi-amd64-bin"
need qemu-img qemu-utils
# These are for the test.
need genisoimage genisoimage
need ssh openssh-client
[ -e /usr/share/ovmf/OVMF.fd ] || missing="$missing ovmf"
# Without root, mmdebstrap is root in a user namespace, with a range of user IDs.
[ "$(id -u)" = 0 ] || need newuidmap uidmap
if [ "$missing" ]; then
    root=
    if [ "$(id -u)" != 0 ]; then
        have sudo || die "these packages are missing and there is no sudo: install them as root:$missing"
        root=sudo
    fi
    say "installing$missing"
    $root apt-get -qq update
    # shellcheck disable=SC2086  # a list of packages
    $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
fi

# Everything is prepared beside target/cloud-image/ and renamed into place whole.
mkdir -p "$PWD/target"
work=$(mktemp -d "$PWD/target/cloud-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/out"

say "installing Debian 12 into a tar archive: 130 MB to download, a minute"
# A user namespace has no right to a directory that belongs to the caller, so the archive comes by a pipe.
mmdebstrap --quiet --variant=minbase --format=tar \
    --include=systemd-sysv,udev,dbus,openssh-server,linux-image-cloud-amd64 \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm - >"$work/root.tar" || die "mmdebstrap failed"

say "making the image"
# What a cloud image has before its first boot, in the few words that this one needs.
cat >"$work/first-boot" <<'END'
#!/bin/sh
# Does what cloud-init does with a NoCloud seed that has one user with one key, and a host key.
set -eu
mount -o ro /dev/disk/by-label/CIDATA /mnt
trap 'umount /mnt' EXIT
sed -n 's/^local-hostname: //p' /mnt/meta-data >/etc/hostname
hostname -F /etc/hostname
user=$(sed -n 's/^ *- name: //p' /mnt/user-data)
id "$user" >/dev/null 2>&1 || useradd -m -s /bin/bash "$user"
mkdir -p "/home/$user/.ssh"
sed -n 's/^ *- \(ssh-ed25519 .*\)/\1/p' /mnt/user-data >"/home/$user/.ssh/authorized_keys"
umask 077
sed -n '/BEGIN OPENSSH/,/END OPENSSH/s/^ *//p' /mnt/user-data >/etc/ssh/ssh_host_ed25519_key
END
cat >"$work/first-boot.service" <<'END'
[Unit]
DefaultDependencies=no
Requires=dev-disk-by\x2dlabel-CIDATA.device
After=dev-disk-by\x2dlabel-CIDATA.device systemd-remount-fs.service
Before=ssh.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/first-boot
[Install]
WantedBy=multi-user.target
END
cat >"$work/fill" <<'END'
set -eu
cd "$1"
mkdir root
tar -xf root.tar -C root --exclude='./dev/*'
cd root
rm -f etc/ssh/ssh_host_*
: >etc/machine-id
echo 'LABEL=root / ext4 defaults 0 1' >etc/fstab
install -m 755 ../first-boot usr/local/sbin/first-boot
install -m 644 ../first-boot.service etc/systemd/system/first-boot.service
ln -s ../first-boot.service etc/systemd/system/multi-user.target.wants/
printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' >etc/systemd/network/ether.network
ln -s /lib/systemd/system/systemd-networkd.service etc/systemd/system/multi-user.target.wants/
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer \
    systemd-networkd-wait-online.service; do
    ln -s /dev/null "etc/systemd/system/$unit"
done
kernel=$(cd boot && ls vmlinuz-*)
mkdir boot/grub
cat >boot/grub/grub.cfg <<CFG
search --no-floppy --label root --set=root
linux /boot/$kernel root=LABEL=root rw console=tty0 console=ttyS0,115200
initrd /boot/initrd.img-${kernel#vmlinuz-}
boot
CFG
truncate -s "$2" ../root.ext4
mke2fs -q -t ext4 -L root -d . ../root.ext4
END
root_mib=640 esp_mib=40 start_mib=1
fakeroot sh "$work/fill" "$work" "${root_mib}M"

# Debian's signed GRUB would do, too; this one needs no installation.
printf '%s\n' 'search --no-floppy --label root --set=root' "configfile (\$root)/boot/grub/grub.cfg" >"$work/early.cfg"
grub-mkimage -O x86_64-efi -p /boot/grub -c "$work/early.cfg" -o "$work/BOOTX64.EFI" \
    part_gpt ext2 fat normal linux search search_label configfile serial terminal echo boot
truncate -s "${esp_mib}M" "$work/esp"
mkfs.vfat "$work/esp" >/dev/null
mmd -i "$work/esp" ::/EFI ::/EFI/BOOT
mcopy -i "$work/esp" "$work/BOOTX64.EFI" ::/EFI/BOOT/

truncate -s "$((start_mib + esp_mib + root_mib + 1))M" "$work/disk" # 1 MiB for the second partition table
printf '%s\n' 'label: gpt' "start=${start_mib}MiB, size=${esp_mib}MiB, type=U" "size=${root_mib}MiB, type=L" |
    sfdisk --quiet "$work/disk"
dd if="$work/esp" of="$work/disk" bs=1M seek="$start_mib" conv=notrunc,sparse status=none
dd if="$work/root.ext4" of="$work/disk" bs=1M seek="$((start_mib + esp_mib))" conv=notrunc,sparse status=none
qemu-img convert -f raw -O qcow2 "$work/disk" "$work/out/disk.qcow2"
printf '%s\n' "$stamp" >"$work/out/stamp"

rm -rf "$image"
mv "$work/out" "$image"
say "all set: target/cloud-image/disk.qcow2"
