//! Makes programs and libraries that are linked dynamically.

use crate::make::{AARCH64, EXIT, X86_64};

pub(crate) const I386: u16 = 3;
pub(crate) const ARM: u16 = 40;

/// Where the file is loaded.
const BASE: u64 = 0x40_0000;

/// A program or a library, of one segment.
#[derive(Debug, Clone)]
pub(crate) struct Linked {
    machine: u16,
    flags: u32,
    interpreter: Option<String>,
    /// Tags of the dynamic section whose values are strings.
    strings: Vec<(u64, String)>,
}

impl Linked {
    pub(crate) fn new(machine: u16) -> Self {
        Self { machine, flags: 5, interpreter: None, strings: Vec::new() }
    }

    pub(crate) fn loader(mut self, path: &str) -> Self {
        self.interpreter = Some(path.into());
        self
    }

    pub(crate) fn needs(self, name: &str) -> Self {
        self.string(1, name)
    }

    pub(crate) fn soname(self, name: &str) -> Self {
        self.string(14, name)
    }

    pub(crate) fn rpath(self, folders: &str) -> Self {
        self.string(15, folders)
    }

    pub(crate) fn runpath(self, folders: &str) -> Self {
        self.string(29, folders)
    }

    /// It has data alone: its segment may not be executed.
    pub(crate) fn data_only(mut self) -> Self {
        self.flags = 4;
        self
    }

    fn string(mut self, tag: u64, value: &str) -> Self {
        self.strings.push((tag, value.into()));
        self
    }

    /// The bytes of the file.
    pub(crate) fn end(&self) -> Vec<u8> {
        let wide = matches!(self.machine, X86_64 | AARCH64);
        let (word, header, segment) = if wide { (8, 64, 56) } else { (4, 52, 32) };
        let segments = 2 + u64::from(self.interpreter.is_some());
        let number = |value: u64| value.to_le_bytes()[..word].to_vec();
        // Behind the headers: the code, the loader's name, the strings, the dynamic section.
        let code = header + segments * segment;
        let name = code + EXIT.len() as u64;
        let interpreter =
            self.interpreter.iter().flat_map(|path| [path.as_bytes(), b"\0"].concat()).collect::<Vec<u8>>();
        let strings = name + interpreter.len() as u64;
        let mut text = vec![0];
        let mut entries = Vec::new();
        for (tag, value) in &self.strings {
            entries.extend([number(*tag), number(text.len() as u64)].concat());
            text.extend([value.as_bytes(), b"\0"].concat());
        }
        entries.extend([number(5), number(BASE + strings), number(0), number(0)].concat());
        let dynamic = strings + text.len() as u64;
        let length = dynamic + entries.len() as u64;

        let mut elf = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1];
        elf.resize(16, 0);
        elf.extend(3_u16.to_le_bytes());
        elf.extend(self.machine.to_le_bytes());
        elf.extend(1_u32.to_le_bytes());
        elf.extend([number(BASE + code), number(header), number(0), vec![0; 4]].concat());
        for half in [header, segment, segments, 0, 0, 0] {
            elf.extend((half as u16).to_le_bytes());
        }
        let mut add = |kind: u32, flags: u32, offset: u64, bytes: u64| {
            let place = [number(offset), number(BASE + offset), number(BASE + offset), number(bytes), number(bytes)];
            elf.extend(kind.to_le_bytes());
            if wide {
                elf.extend([flags.to_le_bytes().to_vec(), place.concat(), number(4096)].concat());
            } else {
                elf.extend([place.concat(), flags.to_le_bytes().to_vec(), number(4096)].concat());
            }
        };
        add(1, self.flags, 0, length);
        add(2, 4, dynamic, entries.len() as u64);
        if self.interpreter.is_some() {
            add(3, 4, name, interpreter.len() as u64);
        }
        elf.extend([EXIT, &interpreter, &text, &entries].concat());
        elf
    }
}
