//! The ELF kernel inside a bzImage.
//!
//! Offsets are those of the x86 boot protocol's setup header
//! (Documentation/arch/x86/boot.rst).

use anyhow::{Context, Result, bail, ensure};

/// `setup_sects`: the size of the real-mode code in sectors, the boot sector not counted.
const SETUP_SECTS: usize = 0x1f1;
/// `header`: the magic number.
const MAGIC_AT: usize = 0x202;
/// `version` of the boot protocol, which has `payload_*` from 2.08 on.
const VERSION: usize = 0x206;
/// `payload_offset`: from the beginning of the protected-mode code, in bytes.
const PAYLOAD_OFFSET: usize = 0x248;
/// `payload_length`: in bytes, the uncompressed size behind it included.
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// No kernel is larger, and nothing larger is taken into memory.
const MAX_ELF: u64 = 512 << 20;

/// The decompressed ELF kernel of a bzImage whose payload is zstd, as Debian's is.
pub(crate) fn extract_elf(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image)?;
    ensure!(
        payload.starts_with(&ZSTD_MAGIC),
        "the kernel's payload is not compressed with zstd"
    );
    // The build appends the uncompressed size, which is no part of the compressed stream.
    let (stream, size) = payload
        .split_last_chunk::<4>()
        .context("the kernel's payload is too short")?;
    let size = u64::from(u32::from_le_bytes(*size));
    ensure!(size <= MAX_ELF, "the kernel claims to have {size} bytes");
    let elf = zstd::bulk::decompress(stream, size as usize)
        .context("could not decompress the kernel's payload")?;
    ensure!(
        elf.starts_with(b"\x7fELF"),
        "the kernel's payload is no ELF file"
    );
    Ok(elf)
}

/// The compressed payload, with the size behind it.
fn payload(image: &[u8]) -> Result<&[u8]> {
    ensure!(
        image.get(MAGIC_AT..MAGIC_AT + 4) == Some(b"HdrS"),
        "this is no bzImage"
    );
    let version = u32_at(image, VERSION)? & 0xffff;
    if version < 0x0208 {
        bail!("the boot protocol {version:#06x} is older than 0x0208");
    }
    let sectors = match image[SETUP_SECTS] {
        // By the protocol, for old loaders.
        0 => 4,
        n => usize::from(n),
    };
    let begin = (sectors + 1) * SECTOR + u32_at(image, PAYLOAD_OFFSET)? as usize;
    let length = u32_at(image, PAYLOAD_LENGTH)? as usize;
    image
        .get(begin..begin.saturating_add(length))
        .with_context(|| format!("the payload ({length} bytes at {begin}) is not in the file"))
}

fn u32_at(image: &[u8], at: usize) -> Result<u32> {
    let bytes = image
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .context("the file ends inside its setup header")?;
    Ok(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(elf: &[u8]) -> Vec<u8> {
        let stream = zstd::bulk::compress(elf, 1).unwrap();
        let mut image = vec![0; 2 * SECTOR + 16];
        image[SETUP_SECTS] = 1;
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = stream.len() as u32 + 4;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(&stream);
        image.extend((elf.len() as u32).to_le_bytes());
        image.extend([0; 32]);
        image
    }

    #[test]
    fn the_kernel_comes_out_as_it_went_in() {
        let elf = b"\x7fELF and so on".repeat(100);
        assert_eq!(extract_elf(&image(&elf)).unwrap(), elf);
    }

    #[test]
    fn a_cut_image_is_refused_wherever_it_is_cut() {
        let whole = image(b"\x7fELF");
        for end in 0..whole.len() - 32 {
            assert!(extract_elf(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_payload_outside_the_file_is_refused() {
        let mut image = image(b"\x7fELF");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&[0xff; 4]);
        assert!(extract_elf(&image).is_err());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&[0xff; 4]);
        assert!(extract_elf(&image).is_err());
    }

    #[test]
    fn a_payload_that_is_no_elf_file_is_refused() {
        assert!(extract_elf(&image(b"something else")).is_err());
    }
}
