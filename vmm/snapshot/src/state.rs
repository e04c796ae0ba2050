//! The state file: a header and an ordered list of parts, each with a tag and a version of its own.
//!
//! A *part* is the plain serializable state of one thing: a vCPU, the interrupt controllers, a
//! device. The payload is a postcard `u32` (how many parts there are) and then the parts. A part
//! occurs once ([`StateWriter::part`]) or several times in order ([`StateWriter::parts`]), as
//! vCPUs do.
//!
//! Whoever reads a state file takes every part by its type and ends with [`StateReader::finish`],
//! which refuses parts that nobody asked for: dropping a device's state silently would break the
//! guest.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::header::{HEADER_LENGTH, Header, HeaderError, MAX_PAYLOAD_LENGTH};
use super::{SnapshotId, open_regular};

/// Most parts that a state file has.
pub const MAX_PARTS: usize = 1024;
/// Longest tag, in bytes.
pub const MAX_TAG_LENGTH: usize = 32;

/// A plain serializable state that a state file carries.
///
/// A state file is hostile input. A list of items that are larger in memory than in the file has a
/// limit ([`vmgenie_devices::bounded`]), and no part contains a sequence of zero-sized items or
/// contains itself; the one who decodes checks that the values make sense.
pub trait Part: Serialize + DeserializeOwned {
    /// Names the part in the file: 1 to [`MAX_TAG_LENGTH`] of `a-z`, `0-9`, `-`.
    const TAG: &'static str;
    /// Version of the part's layout; any change of a field moves it.
    const VERSION: u16;

    /// Decodes the body of an older version, and returns what of it is left over; `None` for a version
    /// that this program does not read.
    fn from_older(_version: u16, _body: &[u8]) -> Option<postcard::Result<(Self, &[u8])>> {
        None
    }
}

/// Why a state could not be turned into a state file.
#[derive(Debug, thiserror::Error)]
pub enum WriteStateError {
    /// A part could not be encoded.
    #[error("could not encode part `{tag}` of the state")]
    Encode {
        /// Tag of the part.
        tag: &'static str,
        /// What the encoder says.
        source: postcard::Error,
    },
    /// The part's type breaks the rules of [`Part::TAG`].
    #[error("`{0}` is not a tag: 1 to {MAX_TAG_LENGTH} of a-z, 0-9 and - are")]
    BadTag(&'static str),
    /// The part was written before.
    #[error("part `{0}` of the state was written twice")]
    Duplicate(&'static str),
    /// There are more than [`MAX_PARTS`] parts.
    #[error("the state has more than {MAX_PARTS} parts")]
    TooManyParts,
    /// The payload is longer than [`MAX_PAYLOAD_LENGTH`].
    #[error("the state takes {0} bytes, the limit is {MAX_PAYLOAD_LENGTH}")]
    TooLong(usize),
}

/// Why a state file was refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file could not be opened or read.
    #[error("it could not be read")]
    Read(#[from] io::Error),
    /// The path names a directory, a device or the like.
    #[error("it is not a regular file")]
    NotAFile,
    /// The file is larger than any state file.
    #[error("it is {0} bytes long, longer than any state file of vmgenie")]
    TooLarge(u64),
    /// The header or the checksum is wrong.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// The list of parts cannot be decoded.
    #[error("the list of its parts is malformed at part {index}: {reason}")]
    Malformed {
        /// Which part, from 0.
        index: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// A part occurs more often, or elsewhere, than it may.
    #[error("part `{0}` occurs twice or out of order")]
    Duplicate(String),
    /// A part that the reader needs is not there, or was taken before.
    #[error("part `{0}` is missing")]
    Missing(&'static str),
    /// The part has a layout that this program does not read.
    #[error(
        "part `{tag}` has version {found}, this program reads version {expected}; restore it with \
         the vmgenie that made it"
    )]
    Version {
        /// Tag of the part.
        tag: &'static str,
        /// Version in the file.
        found: u16,
        /// Version that this program reads.
        expected: u16,
    },
    /// The body of a part cannot be decoded.
    #[error("part `{tag}` cannot be decoded")]
    Decode {
        /// Tag of the part.
        tag: &'static str,
        /// What the decoder says.
        source: postcard::Error,
    },
    /// The body of a part is longer than what it encodes.
    #[error("part `{tag}` has {length} bytes too many")]
    TrailingBytes {
        /// Tag of the part.
        tag: &'static str,
        /// Bytes that are left over.
        length: usize,
    },
    /// Parts that nobody asked for.
    #[error(
        "it has parts that this program does not know: {0}; restore it with the vmgenie that made it"
    )]
    Unknown(String),
}

/// One part in the file. The body comes last, so that its place in the file is known.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    tag: &'a str,
    /// Position among the parts with this tag; `None` for a part that occurs once.
    index: Option<u32>,
    version: u16,
    #[serde(borrow)]
    body: Body<'a>,
}

/// Bytes that serde takes for bytes: the same on the wire as a sequence, and faster.
struct Body<'a>(&'a [u8]);

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Body<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Self)
    }
}

fn is_tag(tag: &str) -> bool {
    (1..=MAX_TAG_LENGTH).contains(&tag.len())
        && tag
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Builds a state file in memory, part after part.
#[derive(Debug)]
pub struct StateWriter {
    id: SnapshotId,
    memory_length: u64,
    tags: Vec<&'static str>,
    count: u32,
    records: Vec<u8>,
}

impl StateWriter {
    /// Begins the state of the snapshot `id` of a machine with `memory_length` bytes of memory.
    pub fn new(id: SnapshotId, memory_length: u64) -> Self {
        Self {
            id,
            memory_length,
            tags: Vec::new(),
            count: 0,
            records: Vec::new(),
        }
    }

    /// Adds a part that occurs once.
    ///
    /// # Errors
    /// Fails if a part of this tag was added before, or cannot be encoded.
    pub fn part<P: Part>(&mut self, part: &P) -> Result<&mut Self, WriteStateError> {
        self.begin::<P>()?;
        self.record(None, part)?;
        Ok(self)
    }

    /// Adds all parts of a kind that occurs any number of times, in their order.
    ///
    /// # Errors
    /// Fails if a part of this tag was added before, or one cannot be encoded.
    pub fn parts<'p, P: Part + 'p>(
        &mut self,
        parts: impl IntoIterator<Item = &'p P>,
    ) -> Result<&mut Self, WriteStateError> {
        self.begin::<P>()?;
        for (index, part) in (0..).zip(parts) {
            self.record(Some(index), part)?;
        }
        Ok(self)
    }

    /// The bytes of the state file.
    ///
    /// # Errors
    /// Fails if they are more than a state file may have.
    pub fn finish(self) -> Result<Vec<u8>, WriteStateError> {
        let encode = |source| WriteStateError::Encode {
            tag: "count",
            source,
        };
        let mut payload = postcard::to_stdvec(&self.count).map_err(encode)?;
        payload.extend_from_slice(&self.records);
        if payload.len() > MAX_PAYLOAD_LENGTH {
            return Err(WriteStateError::TooLong(payload.len()));
        }
        Ok(Header::seal(self.id, self.memory_length, &payload))
    }

    fn begin<P: Part>(&mut self) -> Result<(), WriteStateError> {
        if !is_tag(P::TAG) {
            return Err(WriteStateError::BadTag(P::TAG));
        }
        if self.tags.contains(&P::TAG) {
            return Err(WriteStateError::Duplicate(P::TAG));
        }
        self.tags.push(P::TAG);
        Ok(())
    }

    fn record<P: Part>(&mut self, index: Option<u32>, part: &P) -> Result<(), WriteStateError> {
        if self.count as usize == MAX_PARTS {
            return Err(WriteStateError::TooManyParts);
        }
        let encode = |source| WriteStateError::Encode {
            tag: P::TAG,
            source,
        };
        let body = postcard::to_stdvec(part).map_err(encode)?;
        let record = Record {
            tag: P::TAG,
            index,
            version: P::VERSION,
            body: Body(&body),
        };
        let records = std::mem::take(&mut self.records);
        self.records = postcard::to_extend(&record, records).map_err(encode)?;
        self.count += 1;
        Ok(())
    }
}

/// Where a part lies in the file.
#[derive(Debug)]
struct Entry {
    tag: Range<usize>,
    index: Option<u32>,
    version: u16,
    body: Range<usize>,
    taken: bool,
}

/// A state file that was read, verified and divided into its parts.
#[derive(Debug)]
pub struct StateReader {
    header: Header,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl StateReader {
    /// Reads and verifies the state file at `path`.
    ///
    /// # Errors
    /// Says why the file was refused; the caller adds the path.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let (file, length) = open_regular(path)?.ok_or(StateError::NotAFile)?;
        Self::from_bytes(read_whole(file, length)?)
    }

    /// Reads and verifies an open state file.
    pub(super) fn of_file(file: File, metadata: &Metadata) -> Result<Self, StateError> {
        match metadata.is_file() {
            true => Self::from_bytes(read_whole(file, metadata.len())?),
            false => Err(StateError::NotAFile),
        }
    }

    /// Verifies a state file that is in memory.
    ///
    /// # Errors
    /// Says why the file was refused.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, StateError> {
        let (header, payload) = Header::verify(&bytes)?;
        let entries = entries(payload)?;
        Ok(Self {
            header,
            bytes,
            entries,
        })
    }

    /// The verified header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Takes the part that occurs once.
    ///
    /// # Errors
    /// Fails if it is not there, was taken, has another version or cannot be decoded.
    pub fn take<P: Part>(&mut self) -> Result<P, StateError> {
        self.take_optional()?.ok_or(StateError::Missing(P::TAG))
    }

    /// Takes the part that occurs once, if it is there: the state of something that not every
    /// machine has.
    ///
    /// # Errors
    /// Fails if it has another version or cannot be decoded.
    pub fn take_optional<P: Part>(&mut self) -> Result<Option<P>, StateError> {
        let payload = &self.bytes[HEADER_LENGTH..];
        let wanted = |entry: &&mut Entry| {
            !entry.taken
                && entry.index.is_none()
                && payload[entry.tag.clone()] == *P::TAG.as_bytes()
        };
        let Some(entry) = self.entries.iter_mut().find(wanted) else {
            return Ok(None);
        };
        entry.taken = true;
        decode(entry, payload).map(Some)
    }

    /// Takes all parts of a kind that occurs any number of times, in their order; none is no error.
    ///
    /// # Errors
    /// Fails if one has another version or cannot be decoded.
    pub fn take_all<P: Part>(&mut self) -> Result<Vec<P>, StateError> {
        let payload = &self.bytes[HEADER_LENGTH..];
        let wanted = |entry: &&mut Entry| {
            !entry.taken
                && entry.index.is_some()
                && payload[entry.tag.clone()] == *P::TAG.as_bytes()
        };
        let take = |entry: &mut Entry| {
            entry.taken = true;
            decode(entry, payload)
        };
        self.entries.iter_mut().filter(wanted).map(take).collect()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Names the parts that nobody has taken.
    pub fn finish(self) -> Result<(), StateError> {
        let payload = &self.bytes[HEADER_LENGTH..];
        let mut left: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| !entry.taken)
            .map(|entry| format!("`{}`", String::from_utf8_lossy(&payload[entry.tag.clone()])))
            .collect();
        left.dedup();
        if left.is_empty() {
            Ok(())
        } else {
            Err(StateError::Unknown(left.join(", ")))
        }
    }
}

/// Reads a file of `length` bytes whole, unless it is longer than a state file can be.
fn read_whole(mut file: File, length: u64) -> Result<Vec<u8>, StateError> {
    if length > (HEADER_LENGTH + MAX_PAYLOAD_LENGTH) as u64 {
        return Err(StateError::TooLarge(length));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Divides a payload into parts and checks their order, without decoding one.
fn entries(payload: &[u8]) -> Result<Vec<Entry>, StateError> {
    let malformed = |index, reason| StateError::Malformed { index, reason };
    let (count, mut rest) = postcard::take_from_bytes::<u32>(payload)
        .map_err(|_| malformed(0, "their number cannot be decoded"))?;
    if count as usize > MAX_PARTS {
        return Err(malformed(0, "there are too many"));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(count as usize);
    for number in 0..count as usize {
        let (record, after) = postcard::take_from_bytes::<Record<'_>>(rest)
            .map_err(|_| malformed(number, "it cannot be decoded"))?;
        if !is_tag(record.tag) {
            return Err(malformed(number, "its tag is not a tag"));
        }
        rest = after;
        let end = payload.len() - rest.len();
        let tag_start = record.tag.as_ptr().addr() - payload.as_ptr().addr();
        let entry = Entry {
            tag: tag_start..tag_start + record.tag.len(),
            index: record.index,
            version: record.version,
            body: end - record.body.0.len()..end,
            taken: false,
        };
        let earlier = entries
            .iter()
            .rev()
            .find(|earlier| payload[earlier.tag.clone()] == *record.tag.as_bytes());
        let in_order = match (earlier.map(|earlier| earlier.index), entry.index) {
            (None, None | Some(0)) => true,
            (Some(Some(earlier)), Some(index)) => earlier.checked_add(1) == Some(index),
            _ => false,
        };
        if !in_order {
            return Err(StateError::Duplicate(record.tag.to_owned()));
        }
        entries.push(entry);
    }
    if !rest.is_empty() {
        return Err(malformed(
            count as usize,
            "there are bytes behind the last part",
        ));
    }
    Ok(entries)
}

fn decode<P: Part>(entry: &Entry, payload: &[u8]) -> Result<P, StateError> {
    let tag = P::TAG;
    let body = &payload[entry.body.clone()];
    let decoded = match entry.version {
        version if version == P::VERSION => postcard::take_from_bytes(body),
        version => P::from_older(version, body).ok_or(StateError::Version {
            tag,
            found: version,
            expected: P::VERSION,
        })?,
    };
    let (part, rest) = decoded.map_err(|source| StateError::Decode { tag, source })?;
    match rest.len() {
        0 => Ok(part),
        length => Err(StateError::TrailingBytes { tag, length }),
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
