//! What a compressed stream unpacks to, at offsets: forward by unpacking on, backward by beginning anew.

use super::{Decoder, Input, Method, decoder};
use crate::inspect::bytes::{Bytes, Raw};
use crate::inspect::trouble::Trouble;
use std::cell::RefCell;
use std::io;

/// Bytes that are unpacked at once while some are passed over.
const STEP_BYTES: usize = 64 << 10;
/// Bytes at the beginning that are kept.
const HEAD_BYTES: usize = 68 << 10;

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// As it should, after so many packed and unpacked bytes.
    Whole { packed: u64, unpacked: u64 },
    /// Before its end, or with an error; so many bytes came out before.
    Broken { unpacked: u64, why: Trouble },
}

struct Cursor<'a> {
    decoder: Box<dyn Decoder + 'a>,
    position: u64,
}

/// An unpacked stream.
pub(crate) struct Unpacked<'a> {
    raw: Raw<'a>,
    method: Method,
    cursor: RefCell<Option<Cursor<'a>>>,
    end: RefCell<Option<End>>,
    /// The first bytes, which are asked for again and again.
    head: RefCell<Vec<u8>>,
}

impl<'a> Unpacked<'a> {
    pub(crate) fn new(raw: Raw<'a>, method: Method) -> Self {
        let (cursor, end) = (RefCell::new(None), RefCell::new(None));
        Self { raw, method, cursor, end, head: RefCell::new(Vec::new()) }
    }

    /// How it ended, once it has been read to its end.
    pub(crate) fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    /// Unpacks into `buffer` from where the cursor is; fewer bytes only at the end.
    fn forward(&self, cursor: &mut Cursor<'a>, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            if cursor.position >= self.raw.work().stream_bytes() {
                let why = Trouble::Bound("a packed stream unpacks to more than 1 GiB");
                self.ended(End::Broken { unpacked: cursor.position, why: why.clone() });
                return Err(why);
            }
            match cursor.decoder.read(rest) {
                Ok(0) => {
                    self.ended(End::Whole { packed: cursor.decoder.taken(), unpacked: cursor.position });
                    break;
                }
                Ok(count) => {
                    self.raw.work().unpack_by(self.method.weight(), count)?;
                    self.remember(cursor.position, rest.get(..count).unwrap_or_default());
                    done = done.saturating_add(count);
                    cursor.position = cursor.position.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // A decoder that would need more memory than it may have says so.
                    let large = error.kind() == io::ErrorKind::OutOfMemory;
                    let bound = Trouble::Bound("a packed stream needs more memory to unpack than there is for it");
                    let why = if large { bound } else { Trouble::Corrupt(error.to_string()) };
                    self.ended(End::Broken { unpacked: cursor.position, why: why.clone() });
                    if large {
                        return Err(why);
                    }
                    break;
                }
            }
        }
        Ok(done)
    }

    /// Keeps the first bytes.
    fn remember(&self, position: u64, bytes: &[u8]) {
        let mut head = self.head.borrow_mut();
        if u64::try_from(head.len()) == Ok(position) {
            let room = HEAD_BYTES.saturating_sub(head.len()).min(bytes.len());
            head.extend_from_slice(bytes.get(..room).unwrap_or_default());
        }
    }

    /// Remembers the first end that was seen.
    fn ended(&self, end: End) {
        self.end.borrow_mut().get_or_insert(end);
    }

    /// Where it is known that nothing comes any more.
    fn known_length(&self) -> Option<u64> {
        match *self.end.borrow() {
            Some(End::Whole { unpacked, .. } | End::Broken { unpacked, .. }) => Some(unpacked),
            None => None,
        }
    }
}

impl Bytes for Unpacked<'_> {
    fn close(&self) {
        *self.cursor.borrow_mut() = None;
    }

    /// What comes before an error is given; the error is in [`Self::end`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let known = {
            let head = self.head.borrow();
            let known = usize::try_from(offset).ok().and_then(|offset| head.get(offset..)).unwrap_or_default();
            let count = known.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..count), known.get(..count)) {
                to.copy_from_slice(from);
            }
            count
        };
        let rest = buffer.get_mut(known..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(known);
        }
        let offset = offset.saturating_add(u64::try_from(known).unwrap_or(u64::MAX));
        Ok(known.saturating_add(self.unpack_at(offset, rest)?))
    }
}

impl Unpacked<'_> {
    fn unpack_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let bounded = matches!(*self.end.borrow(), Some(End::Broken { why: Trouble::Bound(_), .. }));
        if self.known_length().is_some_and(|length| offset >= length) && !bounded {
            return Ok(0);
        }
        let mut slot = self.cursor.borrow_mut();
        if slot.as_ref().is_none_or(|cursor| cursor.position > offset) {
            self.raw.work().rewind()?;
            *slot = None;
            match decoder(self.method, Input::new(self.raw)) {
                Ok(decoder) => *slot = Some(Cursor { decoder, position: 0 }),
                Err(why) => {
                    self.ended(End::Broken { unpacked: 0, why: why.clone() });
                    return Err(why);
                }
            }
        }
        let Some(cursor) = slot.as_mut() else { return Ok(0) };
        let mut passed = Vec::new();
        while cursor.position < offset {
            let length = usize::try_from(offset.saturating_sub(cursor.position)).unwrap_or(usize::MAX).min(STEP_BYTES);
            passed.resize(length, 0);
            if self.forward(cursor, &mut passed)? < length {
                return Ok(0);
            }
        }
        self.forward(cursor, buffer)
    }
}
