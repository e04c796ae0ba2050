use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

/// Makes an image whose root has these files, and these links (path, target). `None` without the tools.
fn image(files: &[(&str, &str)], links: &[(&str, &str)]) -> tempfile::NamedTempFile {
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
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([tree.path(), image.path()])
        .output()
        .expect("mke2fs, which `cargo xtask setup` installs");
    assert!(output.status.success(), "{output:?}");
    image
}

fn found(image: &tempfile::NamedTempFile) -> Result<Option<Image>, ImageError> {
    found_in(image.reopen().unwrap())
}

fn found_in(mut file: File) -> Result<Option<Image>, ImageError> {
    match in_file(&mut file)? {
        Some(superblock) => Image::new(file, superblock).map(Some),
        None => Ok(None),
    }
}

fn text(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// The contents of kernel and initrd.
fn contents(image: &tempfile::NamedTempFile) -> (String, Option<String>) {
    let image = found(image).unwrap().unwrap();
    (
        text(image.kernel().unwrap()),
        image.initrd().unwrap().map(text),
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
        assert!(matches!(error, ImageError::NoKernel), "{error}");
    }
    // A directory is no kernel, and a link into a circle leads nowhere.
    let circle = image(&[("/vmlinuz/x", "")], &[("/vmlinux", "vmlinux")]);
    assert!(found(&circle).is_err());
}

#[test]
fn what_is_no_image_is_left_to_others_and_a_partition_table_is_told() {
    for len in [0, 100, 2047, 2048, 1 << 20] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        assert!(found_in(file).unwrap().is_none(), "{len}");
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(GPT, 512).unwrap();
    assert!(matches!(found_in(file), Err(ImageError::Partitions)));
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
        let at = SUPERBLOCK + offset;
        let mut old = [0; 4];
        file.read_exact_at(&mut old, at).unwrap();
        file.write_all_at(&value.to_le_bytes(), at).unwrap();
        let error = found(&good).err().unwrap();
        assert!(
            matches!(error, ImageError::Superblock(_)),
            "{offset:#x}: {error}"
        );
        file.write_all_at(&old, at).unwrap();
    }
    assert!(found(&good).unwrap().is_some());
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
    /// The reader of the file system is not ours: that nothing in an image makes it panic is what we rely on.
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
            file.read_exact_at(&mut features, SUPERBLOCK + 0x64).unwrap();
            features[1] &= !4;
            file.write_all_at(&features, SUPERBLOCK + 0x64).unwrap();
        }
        for (block, offset, byte) in damage {
            file.write_all_at(&[byte], (block << 12 | offset) % (4 << 20)).unwrap();
        }
        if let Ok(Some(image)) = found_in(file) {
            let _ = image.kernel();
            let _ = image.initrd();
        }
    }
}
