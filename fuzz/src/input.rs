//! The fuzzer's bytes as numbers. Behind the end there are zeros.

/// What is left of the input.
#[derive(Debug)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or those that are left.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Bytes with their length, a byte, before them.
    pub(crate) fn short(&mut self) -> &'a [u8] {
        let len = self.u8();
        self.bytes(len.into())
    }

    /// An address that is in guest memory more often than not.
    pub(crate) fn gpa(&mut self) -> u64 {
        match self.u8() {
            // Around the ends of the ranges of memory.
            0 => 0x20_0000 - u64::from(self.u8()),
            1 => 0x40_0000 + u64::from(self.u16()),
            2 => self.u64(),
            page => u64::from(page) << 12 | u64::from(self.u8()) << 4,
        }
    }

    /// A length that is short more often than not.
    pub(crate) fn len(&mut self) -> u32 {
        match self.u8() {
            0 => self.u32(),
            1 => self.u16().into(),
            2 => 512,
            3 => 4096,
            len => len.into(),
        }
    }
}
