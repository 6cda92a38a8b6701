//! bzip2, by a decoder of our own: the ones in Rust take more than the stream, or do not end on a truncated one.
//!
//! One stream of blocks; each is Huffman codes of move-to-front numbers of a Burrows-Wheeler transform of runs.

use super::input::Input;
use std::io::{self, BufRead, Read};

const BLOCK_MAGIC: u64 = 0x3141_5926_5359;
const END_MAGIC: u64 = 0x1772_4538_5090;
/// Bytes of a block for each level.
const LEVEL_BYTES: usize = 100_000;
/// Symbols that share a Huffman table.
const GROUP: usize = 50;
/// The longest code in bits.
const CODE_BITS: usize = 20;
/// The most symbols of an alphabet: 256 bytes, a second one for runs, and the end.
const SYMBOLS: usize = 258;

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A Huffman table: for each length the first code that is too large for it, and where its symbols begin.
struct Table {
    limit: [i64; CODE_BITS + 2],
    base: [i64; CODE_BITS + 2],
    symbols: Vec<u16>,
}

impl Table {
    fn new(lengths: &[u8]) -> Self {
        let (mut limit, mut base) = ([-1; CODE_BITS + 2], [0; CODE_BITS + 2]);
        let mut symbols = Vec::with_capacity(lengths.len());
        let (mut code, mut index) = (0_i64, 0_i64);
        for length in 1..=CODE_BITS {
            let of_length = (0_u16..).zip(lengths).filter(|(_, own)| usize::from(**own) == length);
            let before = symbols.len();
            symbols.extend(of_length.map(|(symbol, _)| symbol));
            let count = i64::try_from(symbols.len().saturating_sub(before)).unwrap_or(0);
            if let (Some(limit), Some(base)) = (limit.get_mut(length), base.get_mut(length)) {
                *base = index.saturating_sub(code);
                *limit = code.saturating_add(count).saturating_sub(1);
            }
            code = code.saturating_add(count).saturating_mul(2);
            index = index.saturating_add(count);
        }
        Self { limit, base, symbols }
    }
}

/// A decoder of one stream.
pub(crate) struct Reader<'a> {
    input: Input<'a>,
    bits: u64,
    bit_count: u32,
    block_bytes: usize,
    ended: bool,
    /// The transform: for each position its byte in the lowest 8 bits, and the next position above.
    transform: Vec<u32>,
    next: u32,
    left: usize,
    last: Option<u8>,
    equal: u32,
    repeat: u32,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: Input<'a>) -> Self {
        Self {
            input,
            bits: 0,
            bit_count: 0,
            block_bytes: 0,
            ended: false,
            transform: Vec::new(),
            next: 0,
            left: 0,
            last: None,
            equal: 0,
            repeat: 0,
        }
    }

    pub(crate) fn input(&self) -> &Input<'a> {
        &self.input
    }

    /// The next `count` bits, up to 32.
    fn take(&mut self, count: u32) -> io::Result<u32> {
        while self.bit_count < count {
            let byte = *self.input.fill_buf()?.first().ok_or(io::ErrorKind::UnexpectedEof)?;
            self.input.consume(1);
            self.bits = (self.bits << 8) | u64::from(byte);
            self.bit_count = self.bit_count.saturating_add(8);
        }
        self.bit_count = self.bit_count.saturating_sub(count);
        let mask = (1_u64 << count.min(32)).saturating_sub(1);
        Ok(u32::try_from((self.bits >> self.bit_count) & mask).unwrap_or_default())
    }

    fn index(&mut self, count: u32) -> io::Result<usize> {
        Ok(usize::try_from(self.take(count)?).unwrap_or(usize::MAX))
    }

    fn symbol(&mut self, table: &Table) -> io::Result<u16> {
        let mut code = 0_i64;
        for length in 1..=CODE_BITS {
            code = code.saturating_mul(2).saturating_add(i64::from(self.take(1)?));
            if table.limit.get(length).is_some_and(|&limit| code <= limit) {
                let index = table.base.get(length).copied().unwrap_or_default().saturating_add(code);
                let symbol = usize::try_from(index).ok().and_then(|index| table.symbols.get(index));
                return symbol.copied().ok_or_else(|| bad("a bzip2 code has no symbol"));
            }
        }
        Err(bad("a bzip2 code is too long"))
    }

    /// Reads the next block; nothing at the end of the stream.
    fn next_block(&mut self) -> io::Result<bool> {
        if self.block_bytes == 0 {
            let magic = self.take(24)?;
            let level = self.take(8)?.checked_sub(u32::from(b'0')).filter(|level| (1..=9).contains(level));
            let level = level.filter(|_| magic == 0x42_5a68).ok_or_else(|| bad("the bzip2 header is wrong"))?;
            self.block_bytes = usize::try_from(level).unwrap_or(1).saturating_mul(LEVEL_BYTES);
        }
        let magic = (u64::from(self.take(24)?) << 24) | u64::from(self.take(24)?);
        self.take(32)?;
        if magic == END_MAGIC {
            return Ok(false);
        }
        if magic != BLOCK_MAGIC {
            return Err(bad("a bzip2 block has no magic"));
        }
        if self.take(1)? != 0 {
            return Err(bad("a randomised bzip2 block, which nothing has written for twenty years"));
        }
        let origin = self.index(24)?;
        self.read_symbols()?;
        self.invert(origin)?;
        Ok(true)
    }

    /// The bytes that occur in the block.
    fn alphabet(&mut self) -> io::Result<Vec<u8>> {
        let rows = self.take(16)?;
        let mut bytes = Vec::with_capacity(256);
        for row in 0..16_u8 {
            if rows & (0x8000 >> row) == 0 {
                continue;
            }
            let columns = self.take(16)?;
            let in_row = (0..16_u8).filter(|column| columns & (0x8000 >> column) != 0);
            bytes.extend(in_row.map(|column| (row << 4) | column));
        }
        if bytes.is_empty() { Err(bad("a bzip2 block uses no byte")) } else { Ok(bytes) }
    }

    /// Which table each group of symbols uses.
    fn selectors(&mut self, tables: usize) -> io::Result<Vec<u8>> {
        let count = self.index(15)?;
        let mut order: Vec<u8> = (0..6).take(tables).collect();
        let mut selectors = Vec::with_capacity(count);
        for _ in 0..count {
            let mut position = 0_usize;
            while self.take(1)? == 1 {
                position = position.saturating_add(1);
                if position >= tables {
                    return Err(bad("a bzip2 selector is of no table"));
                }
            }
            let table = order.get(position).copied().unwrap_or_default();
            order.copy_within(..position, 1);
            if let Some(first) = order.first_mut() {
                *first = table;
            }
            selectors.push(table);
        }
        Ok(selectors)
    }

    fn table(&mut self, symbols: usize) -> io::Result<Table> {
        let mut length = self.take(5)?;
        let mut lengths = [0_u8; SYMBOLS];
        for own in lengths.iter_mut().take(symbols) {
            loop {
                if !(1..=20).contains(&length) {
                    return Err(bad("a bzip2 code has a length that none can have"));
                }
                if self.take(1)? == 0 {
                    break;
                }
                length = if self.take(1)? == 0 { length.saturating_add(1) } else { length.saturating_sub(1) };
            }
            *own = u8::try_from(length).unwrap_or_default();
        }
        Ok(Table::new(lengths.get(..symbols).unwrap_or_default()))
    }

    /// Decodes the symbols into the bytes of the transform.
    fn read_symbols(&mut self) -> io::Result<()> {
        let mut recent = self.alphabet()?;
        let end = u16::try_from(recent.len().saturating_add(1)).unwrap_or(u16::MAX);
        let tables = self.index(3)?;
        if !(2..=6).contains(&tables) {
            return Err(bad("a bzip2 block has an impossible number of tables"));
        }
        let selectors = self.selectors(tables)?;
        let symbols = usize::from(end).saturating_add(1);
        let tables: Vec<Table> = (0..tables).map(|_| self.table(symbols)).collect::<io::Result<_>>()?;
        self.transform.clear();
        let (mut run, mut bit) = (0_usize, 1_usize);
        for selector in selectors {
            let table = tables.get(usize::from(selector)).ok_or_else(|| bad("a bzip2 selector is of no table"))?;
            for _ in 0..GROUP {
                let symbol = self.symbol(table)?;
                if symbol <= 1 {
                    // Runs are written in bijective base 2.
                    let digit = usize::from(symbol).saturating_add(1);
                    run = run.saturating_add(bit.saturating_mul(digit));
                    bit = bit.saturating_mul(2);
                    if run > self.block_bytes {
                        return Err(bad("a bzip2 run is longer than its block"));
                    }
                    continue;
                }
                let first = u32::from(recent.first().copied().unwrap_or_default());
                let length = self.transform.len().saturating_add(run);
                if length > self.block_bytes {
                    return Err(bad("a bzip2 block is longer than its level allows"));
                }
                self.transform.resize(length, first);
                (run, bit) = (0, 1);
                if symbol == end {
                    return Ok(());
                }
                let position = usize::from(symbol).saturating_sub(1);
                let byte = *recent.get(position).ok_or_else(|| bad("a bzip2 symbol is of no byte"))?;
                recent.copy_within(..position, 1);
                if let Some(first) = recent.first_mut() {
                    *first = byte;
                }
                if self.transform.len() >= self.block_bytes {
                    return Err(bad("a bzip2 block is longer than its level allows"));
                }
                self.transform.push(u32::from(byte));
            }
        }
        Err(bad("a bzip2 block has no end"))
    }

    /// Links each position of the transform with the one that follows it in the text.
    fn invert(&mut self, origin: usize) -> io::Result<()> {
        if origin >= self.transform.len() {
            return Err(bad("a bzip2 block begins outside of itself"));
        }
        let mut starts = [0_u32; 257];
        for byte in &self.transform {
            let slot = usize::try_from(byte & 0xff).unwrap_or_default().saturating_add(1);
            if let Some(count) = starts.get_mut(slot) {
                *count = count.saturating_add(1);
            }
        }
        let mut sum = 0_u32;
        for start in &mut starts {
            sum = sum.saturating_add(*start);
            *start = sum;
        }
        for position in 0..self.transform.len() {
            let byte = self.transform.get(position).map_or(0, |entry| entry & 0xff);
            let Some(start) = starts.get_mut(usize::try_from(byte).unwrap_or_default()) else { continue };
            let target = usize::try_from(*start).unwrap_or(usize::MAX);
            *start = start.saturating_add(1);
            if let Some(entry) = self.transform.get_mut(target) {
                *entry |= u32::try_from(position).unwrap_or_default() << 8;
            }
        }
        self.next = self.transform.get(origin).map_or(0, |entry| entry >> 8);
        self.left = self.transform.len();
        (self.last, self.equal, self.repeat) = (None, 0, 0);
        Ok(())
    }

    /// The next byte of the block before runs are expanded.
    fn step(&mut self) -> Option<u8> {
        self.left = self.left.checked_sub(1)?;
        let entry = *self.transform.get(usize::try_from(self.next).ok()?)?;
        self.next = entry >> 8;
        u8::try_from(entry & 0xff).ok()
    }

    /// The next byte: four equal ones are followed by the count of more.
    fn byte(&mut self) -> Option<u8> {
        if self.repeat > 0 {
            self.repeat = self.repeat.saturating_sub(1);
            return self.last;
        }
        if self.equal == 4 {
            self.equal = 0;
            self.repeat = u32::from(self.step()?);
            if self.repeat > 0 {
                self.repeat = self.repeat.saturating_sub(1);
                return self.last;
            }
        }
        let byte = self.step()?;
        self.equal = if self.last == Some(byte) && self.equal > 0 { self.equal.saturating_add(1) } else { 1 };
        self.last = Some(byte);
        Some(byte)
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut done = 0_usize;
        while !self.ended {
            while let Some(to) = buffer.get_mut(done) {
                let Some(byte) = self.byte() else { break };
                *to = byte;
                done = done.saturating_add(1);
            }
            if done > 0 {
                return Ok(done);
            }
            self.ended = !self.next_block()?;
        }
        Ok(0)
    }
}
