use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

/// Makes an image whose root has these files, and these links (path, target). `None` without the tools.
fn image(files: &[(&str, &str)], links: &[(&str, &str)]) -> tempfile::NamedTempFile {
    image_with(&[], files, links)
}

/// The same with options of mke2fs.
fn image_with(
    options: &[&str],
    files: &[(&str, &str)],
    links: &[(&str, &str)],
) -> tempfile::NamedTempFile {
    let tree = tempfile::tempdir().unwrap();
    let place = |path: &str| {
        let path = tree.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for (path, content) in files {
        std::fs::write(place(path), content).unwrap();
    }
    for (path, target) in links {
        symlink(target, place(path)).unwrap();
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4 << 20).unwrap();
    let output = Command::new("mke2fs")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-q", "-F", "-t", "ext4"])
        .args(options)
        .arg("-d")
        .args([tree.path(), image.path()])
        .output()
        .expect("mke2fs, which `cargo xtask setup` installs");
    assert!(output.status.success(), "{output:?}");
    image
}

/// More than any file of these tests has.
const LIMIT: u64 = 1 << 20;

fn found(image: &tempfile::NamedTempFile) -> Result<Image, FileSystemError> {
    Image::new(image.reopen().unwrap())
}

fn text(copy: impl FnOnce(File) -> Result<(), FileSystemError>) -> Result<String, FileSystemError> {
    let mut file = tempfile::tempfile().unwrap();
    copy(file.try_clone().unwrap())?;
    let mut text = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut text).unwrap();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The contents of kernel and initrd.
fn contents(image: &tempfile::NamedTempFile) -> (String, Option<String>) {
    let image = found(image).unwrap();
    let initrd = text(|to| image.initrd(to, LIMIT)).unwrap();
    (
        text(|to| image.kernel(to, LIMIT)).unwrap(),
        image.initrd.is_some().then_some(initrd),
    )
}

#[test]
fn a_link_in_the_root_names_the_kernel_and_what_is_beside_it_the_initrd() {
    let image = image(
        &[
            ("/boot/vmlinuz-6.1", "old"),
            ("/boot/vmlinuz-6.12", "new"),
            ("/boot/initrd.img-6.1", "old initrd"),
            ("/boot/initrd.img-6.12", "new initrd"),
        ],
        &[("/vmlinuz", "boot/vmlinuz-6.1")],
    );
    assert_eq!(
        contents(&image),
        ("old".to_owned(), Some("old initrd".to_owned()))
    );
}

#[test]
fn links_are_followed_as_linux_does() {
    let image = image(
        &[("/boot/real/vmlinuz", "kernel")],
        &[
            ("/boot/current", "real"),
            ("/vmlinux", "/boot/./../boot//current/vmlinuz"),
        ],
    );
    assert_eq!(contents(&image).0, "kernel");
    let image = self::image(&[], &[("/vmlinux", "boot/one"), ("/boot/one", "/vmlinux")]);
    let error = found(&image).map(drop).unwrap_err();
    let FileSystemError::FileSystem { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(source, Ext4Error::TooManySymlinks), "{error}");
}

#[test]
fn no_room_is_made_for_a_link_as_long_as_the_image_says() {
    let image = image(&[], &[("/vmlinux", &"x".repeat(100))]);
    let output = Command::new("debugfs")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-w", "-R", "set_inode_field /vmlinux size 700000000000"])
        .arg(image.path())
        .output()
        .expect("debugfs, which comes with mke2fs");
    assert!(output.status.success(), "{output:?}");
    let error = found(&image).map(drop).unwrap_err();
    let FileSystemError::FileSystem { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(source, Ext4Error::PathTooLong), "{error}");
}

#[test]
fn without_a_link_the_newest_kernel_by_number_is_taken() {
    let image = image(
        &[
            ("/boot/vmlinuz-6.9-a", "9"),
            ("/boot/vmlinuz-6.12-a", "12, compressed"),
            ("/boot/vmlinux-6.12-a", "12"),
            ("/boot/initramfs-6.12-a.img", "initramfs"),
            ("/boot/config-7", "no kernel"),
        ],
        // Led astray, as a newest one must not lead.
        &[
            ("/boot/vmlinuz-8", "nowhere"),
            ("/vmlinuz", "/boot/nowhere"),
        ],
    );
    assert_eq!(
        contents(&image),
        ("12".to_owned(), Some("initramfs".to_owned()))
    );
}

#[test]
fn a_kernel_without_version_or_initrd_will_do() {
    assert_eq!(
        contents(&image(
            &[("/boot/vmlinuz", "k"), ("/boot/initrd.img-1", "")],
            &[]
        )),
        ("k".to_owned(), None)
    );
    assert_eq!(
        contents(&image(&[("/vmlinux", "k"), ("/initrd", "i")], &[])),
        ("k".to_owned(), Some("i".to_owned()))
    );
}

#[test]
fn an_image_without_kernel_says_where_one_would_be() {
    for files in [&[("/etc/motd", "")][..], &[("/boot", "a file")]] {
        let error = found(&image(files, &[])).err().unwrap();
        assert!(matches!(error, FileSystemError::NoKernel), "{error}");
    }
    // A directory is no kernel, and a link into a circle leads nowhere.
    let circle = image(&[("/vmlinuz/x", "")], &[("/vmlinux", "vmlinux")]);
    assert!(found(&circle).is_err());
}

#[test]
fn a_file_for_which_there_is_no_guest_memory_is_refused() {
    let image = found(&image(
        &[("/vmlinux", "kernel"), ("/initrd", "1234567")],
        &[],
    ))
    .unwrap();
    let error = text(|to| image.kernel(to, 5)).unwrap_err().to_string();
    assert!(
        error.contains("6 bytes") && error.contains("for 5"),
        "{error}"
    );
    assert_eq!(text(|to| image.kernel(to, 6)).unwrap(), "kernel");
    assert!(text(|to| image.initrd(to, 6)).is_err());
}

#[test]
fn an_image_that_was_not_unmounted_is_read_without_its_journal() {
    for checksums in ["metadata_csum", "^metadata_csum"] {
        let image = image_with(&["-O", checksums], &[("/vmlinux", "k")], &[]);
        let file = image.reopen().unwrap();
        let mut superblock = [0; SUPERBLOCK_LEN];
        file.read_exact_at(&mut superblock, SUPERBLOCK as u64)
            .unwrap();
        superblock[INCOMPATIBLE] |= RECOVERY;
        let sum = CRC32C.checksum(&superblock[..CHECKSUM]);
        superblock[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&superblock, SUPERBLOCK as u64).unwrap();
        assert_eq!(contents(&image), ("k".to_owned(), None), "{checksums}");
        // A superblock that was wrong before stays so.
        superblock[0x78] ^= 1;
        file.write_all_at(&superblock, SUPERBLOCK as u64).unwrap();
        assert_eq!(found(&image).is_ok(), checksums.starts_with('^'));
    }
}

#[test]
fn a_superblock_that_says_more_than_there_is_is_refused() {
    let good = image(&[("/vmlinux", "k")], &[]);
    // Number of blocks, block size, blocks in a group, and the high half of the number of blocks.
    for (offset, value) in [
        (0x4, u32::MAX),
        (0x18, 7),
        (0x18, 31),
        (0x20, 0),
        (0x150, 1),
    ] {
        let file = good.reopen().unwrap();
        let at = (SUPERBLOCK + offset) as u64;
        let mut old = [0; 4];
        file.read_exact_at(&mut old, at).unwrap();
        file.write_all_at(&value.to_le_bytes(), at).unwrap();
        let error = found(&good).err().unwrap();
        assert!(
            matches!(error, FileSystemError::Superblock(_)),
            "{offset:#x}: {error}"
        );
        file.write_all_at(&old, at).unwrap();
    }
    assert!(found(&good).is_ok());
}

/// The bytes of an image with a kernel and an initrd.
fn undamaged() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let files = [("/boot/vmlinux-1", "k"), ("/boot/initrd.img-1", "i")];
        let image = image(&files, &[("/vmlinux", "boot/vmlinux-1")]);
        std::fs::read(image.path()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// Damage by accident, which most images would have; one that is made to do harm is for the bounds of the process.
    #[test]
    fn a_damaged_image_is_read_or_refused(
        damage in proptest::collection::vec((prop_oneof![0_u64..40, 0_u64..1024], 0_u64..4096, any::<u8>()), 1..40),
        without_checksums: bool,
    ) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(undamaged()).unwrap();
        if without_checksums {
            // Feature metadata_csum: with it most damage is found before it is believed.
            let mut features = [0; 4];
            file.read_exact_at(&mut features, (SUPERBLOCK + READ_ONLY_COMPATIBLE) as u64).unwrap();
            features[1] &= !4;
            file.write_all_at(&features, (SUPERBLOCK + READ_ONLY_COMPATIBLE) as u64).unwrap();
        }
        for (block, offset, byte) in damage {
            file.write_all_at(&[byte], (block << 12 | offset) % (4 << 20)).unwrap();
        }
        if let Ok(image) = Image::new(file) {
            let _ = text(|to| image.kernel(to, LIMIT));
            let _ = text(|to| image.initrd(to, LIMIT));
        }
    }
}
