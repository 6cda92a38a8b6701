//! `cargo xtask threat-model`: runs the hostile suite and keeps what it measured in the tables of `docs/THREAT_MODEL.md`.
//!
//! The tests print each result in a line; this makes rows of them. A kept table that says anything else is an error.

use crate::architecture::Architecture;
use crate::binaries::{self, Binaries};
use crate::command::progress;
use crate::console::Patience;
use crate::emulator::Emulator;
use crate::lab::{self, Lab};
use crate::totals::Totals;
use crate::{images, paths, testing};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// The program of the hostile suite.
pub(crate) const TESTS: &str = "captured";
/// The variable that says how many attempts are made: `all`, `some` or `few`.
const HOW_MANY: &str = "BULKHEAD_HOSTILE";
/// The seats, in the order of the columns.
const SEATS: [(&str, &str); 6] = [
    ("loader", "loader"),
    ("vmm-control", "vmm, control"),
    ("vmm-vcpu", "vmm, vCPU"),
    ("serial", "serial"),
    ("virtio-blk", "virtio-blk"),
    ("inspector", "inspector"),
];
/// How long the whole suite may take in the lab.
const PATIENCE: Patience = Patience { total: Duration::from_secs(3600), silence: Duration::from_secs(300) };
/// What stands between attempts that share a line.
const AND: &str = " · ";

/// What became of one row: for each seat, how its attempts ended.
type Cells = [BTreeSet<String>; SEATS.len()];

/// The results of runs, by the name of the architecture.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Results(BTreeMap<String, Matrix>);

impl Results {
    /// Takes a line of a test program's output.
    pub(crate) fn line(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("hostile-result\t") else { return };
        let fields: Vec<_> = result.trim_end().split('\t').collect();
        let [architecture, place, group, row, seat, cell] = fields[..] else { return };
        let (Ok(place), Some(column)) = (place.parse(), SEATS.iter().position(|(name, _)| *name == seat)) else {
            return;
        };
        let key = (group.to_owned(), row.to_owned());
        let matrix = self.0.entry(architecture.to_owned()).or_default();
        matrix.order.insert(place, key.clone());
        if let Some(cells) = matrix.rows.entry(key).or_default().get_mut(column) {
            cells.insert(cell.to_owned());
        }
    }

    /// Adds those of other runs.
    pub(crate) fn add(&mut self, other: Self) {
        for (architecture, matrix) in other.0 {
            let own = self.0.entry(architecture).or_default();
            own.order.extend(matrix.order);
            for (key, cells) in matrix.rows {
                let own = own.rows.entry(key).or_default();
                own.iter_mut().zip(cells).for_each(|(own, cell)| own.extend(cell));
            }
        }
    }
}

/// The results on one architecture.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Matrix {
    /// By the place of each attempt: the group and the row.
    order: BTreeMap<usize, (String, String)>,
    rows: BTreeMap<(String, String), Cells>,
}

impl Matrix {
    /// As Markdown: a table for each group. Attempts that ended alike share a line.
    fn table(&self) -> String {
        let mut groups: Vec<&str> = Vec::new();
        let mut lines: BTreeMap<&str, Vec<(String, Vec<&str>)>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for key in self.order.values() {
            let (Some(cells), true) = (self.rows.get(key), seen.insert(key)) else { continue };
            let (group, row) = (key.0.as_str(), key.1.as_str());
            if !groups.contains(&group) {
                groups.push(group);
            }
            let cells: Vec<_> = cells.iter().map(text).collect();
            let cells = cells.join(" | ");
            let group = lines.entry(group).or_default();
            match group.iter_mut().find(|(as_this, _)| *as_this == cells) {
                Some((_, rows)) => rows.push(row),
                None => group.push((cells, vec![row])),
            }
        }
        let mut out = String::new();
        for group in groups {
            let heads: Vec<_> = SEATS.iter().map(|(_, head)| *head).collect();
            out.push_str(&format!("\n| {group} | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(SEATS.len())));
            for (cells, rows) in lines.get(group).into_iter().flatten() {
                out.push_str(&format!("| {} | {cells} |\n", rows.join(AND)));
            }
        }
        out
    }

    /// What these results say otherwise than a kept table; rows that were not tried are not looked at.
    fn differences(&self, kept: &str) -> Vec<String> {
        let kept = read(kept);
        let mut found = Vec::new();
        for ((group, row), cells) in &self.rows {
            for (column, measured) in cells.iter().enumerate().filter(|(_, cell)| !cell.is_empty()) {
                let said = kept.get(&(group.clone(), row.clone())).and_then(|cells| cells.get(column));
                let measured = text(measured);
                if said != Some(&measured) {
                    let (seat, said) = (SEATS.map(|(name, _)| name), said.map_or("nothing", String::as_str));
                    let seat = seat.get(column).copied().unwrap_or_default();
                    found.push(format!("{group}: {row}, by {seat}: {measured} was measured, {said} is kept"));
                }
            }
        }
        found
    }
}

/// One cell.
fn text(cell: &BTreeSet<String>) -> String {
    let all: Vec<_> = cell.iter().map(String::as_str).collect();
    if all.is_empty() { "–".to_owned() } else { all.join(" / ") }
}

/// The cells of a kept table by group and row.
fn read(table: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut rows = BTreeMap::new();
    let mut group = String::new();
    let mut last = String::new();
    for line in table.lines() {
        if line.starts_with("|---") {
            group.clone_from(&last);
        }
        let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        last = cells.next().unwrap_or_default();
        let cells: Vec<_> = cells.collect();
        for row in last.split(AND) {
            rows.insert((group.clone(), row.to_owned()), cells.clone());
        }
    }
    rows
}

/// The lines around the table of an architecture.
fn markers(architecture: &str) -> (String, String) {
    let begin = format!("<!-- measured on {architecture}: begin -->\n");
    (begin, format!("\n<!-- measured on {architecture}: end -->"))
}

fn document() -> std::path::PathBuf {
    paths::repository().join("docs/THREAT_MODEL.md")
}

/// The document, cut at the table of an architecture: before, table, behind.
fn cut<'a>(text: &'a str, architecture: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let (begin, end) = markers(architecture);
    let missing = || format!("docs/THREAT_MODEL.md has no line {:?} with its end", begin.trim());
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (table, behind) = rest.split_once(&end).with_context(missing)?;
    Ok((before, table, behind))
}

/// What `results` say otherwise than the kept tables.
///
/// # Errors
/// When the document cannot be read.
pub(crate) fn compare(results: &Results) -> Result<Vec<String>> {
    let text = fs::read_to_string(document()).context("cannot read docs/THREAT_MODEL.md")?;
    let mut all = Vec::new();
    for (architecture, matrix) in &results.0 {
        let (_, kept, _) = cut(&text, architecture)?;
        if kept.trim().is_empty() {
            progress(format_args!("docs/THREAT_MODEL.md keeps no table of {architecture} to compare with"));
            continue;
        }
        all.extend(matrix.differences(kept).into_iter().map(|difference| format!("{architecture}: {difference}")));
    }
    Ok(all)
}

/// Runs the suite; writes the table, or with `check` says whether it is the kept one.
///
/// # Errors
/// When an attempt did not end as it must, or the kept table is another.
pub(crate) fn run(architecture: Architecture, check: bool) -> Result<()> {
    let mut totals = Totals::default();
    if architecture == Architecture::native() {
        here(&mut totals)?;
    } else {
        in_lab(&mut totals)?;
    }
    let [(name, matrix)] = &totals.hostile.0.iter().collect::<Vec<_>>()[..] else { bail!("no result was printed") };
    let text = fs::read_to_string(document()).context("cannot read docs/THREAT_MODEL.md")?;
    let (before, kept, behind) = cut(&text, name)?;
    let measured = matrix.table();
    println!("{measured}");
    if totals.failed > 0 {
        bail!("the hostile suite failed: {totals}");
    }
    if measured == kept {
        progress("docs/THREAT_MODEL.md says what was measured");
        return Ok(());
    }
    if check {
        let differences = matrix.differences(kept).join("\n");
        bail!(
            "docs/THREAT_MODEL.md is not what was measured; `cargo xtask threat-model` writes it anew\n{differences}"
        );
    }
    let (begin, end) = markers(name);
    paths::write_atomically(&document(), [before, &begin, &measured, &end, behind].concat().as_bytes())?;
    progress("docs/THREAT_MODEL.md was written anew");
    Ok(())
}

fn here(totals: &mut Totals) -> Result<()> {
    let binaries = Binaries::build(binaries::Profile::Dev)?;
    let how_many = std::env::var_os(HOW_MANY).unwrap_or_else(|| "all".into());
    for program in binaries::integration_test(TESTS, Architecture::native())? {
        let mut command = Command::new(&program.path);
        command.current_dir(paths::repository().join("tests")).env("BULKHEAD_BIN_DIR", &binaries.folder);
        testing::libtest(totals, command.env(HOW_MANY, &how_many).arg("--nocapture"))?;
    }
    Ok(())
}

/// Of rows with very many attempts some, as in `cargo xtask test` on this machine, if the environment says nothing else:
/// each takes half a second there.
fn in_lab(totals: &mut Totals) -> Result<()> {
    let lab = Lab::prepare(Emulator::of(Architecture::Aarch64)?)?;
    let mut disk = lab.disk()?;
    for program in Binaries::build_for(lab.architecture())?.programs {
        disk.program(&images::in_lab("bin", &program)?, &program);
    }
    let how_many = std::env::var(HOW_MANY).ok().filter(|word| word == "all" || word == "few");
    let mut script = format!("export {HOW_MANY}={}\n", how_many.as_deref().unwrap_or("some"));
    script.push_str(include_str!("../../tests/lab/l1-tests.sh"));
    for program in binaries::integration_test(TESTS, lab.architecture())? {
        let path = images::in_lab("tests", &program.path)?;
        disk.program(&path, &program.path);
        script.push_str(&format!("run_tests {} /{path} --nocapture\n", program.name));
    }
    disk.script("bulkhead/run", script + "exit $status\n");
    let show = |line: &str| {
        println!("{line}");
        totals.line(line);
    };
    match lab.run("threat-model", &disk, lab::watch(PATIENCE, show))? {
        0 => Ok(()),
        status => bail!("the hostile suite ended with status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Matrix {
        let mut results = Results::default();
        for line in [
            "hostile-result\tx\t3\tpaths\tb\tserial\tkilled",
            "test x ... hostile-result\tx\t1\tpaths\ta\tserial\tkilled",
            "hostile-result\tx\t2\tpaths\tc\tserial\tEPERM",
            "hostile-result\tx\t9\tpaths\tc\tloader\tkilled",
            "test result: ok. 1 passed; 0 failed",
        ] {
            let mut one = Results::default();
            one.line(line);
            results.add(one);
        }
        results.0.remove("x").unwrap()
    }

    #[test]
    fn results_become_a_table_in_which_equal_rows_share_a_line() {
        let table = results().table();
        let rows: Vec<_> = table.lines().skip(3).collect();
        assert_eq!(rows, ["| a · b | – | – | – | killed | – | – |", "| c | killed | – | – | EPERM | – | – |"]);
    }

    #[test]
    fn kept_table_that_says_the_same_has_no_differences() {
        assert_eq!(results().differences(&results().table()), [""; 0]);
    }

    #[test]
    fn every_test_that_the_document_names_is_there() {
        let text = fs::read_to_string(document()).unwrap();
        let names = text.split('`').filter_map(|word| word.split_once("::"));
        let names: Vec<_> = names.filter(|(_, name)| name.starts_with(|c: char| c.is_ascii_lowercase())).collect();
        assert!(names.len() > 15, "{names:?}");
        for (program, name) in names {
            let places = match program {
                "policies" => vec!["policies/tests/jail.rs".to_owned()],
                "block" => ["malformed", "requests", "server", "uring"]
                    .map(|file| format!("device-procs/src/block/tests/{file}.rs"))
                    .to_vec(),
                _ => vec![format!("tests/tests/{program}.rs")],
            };
            let has = |place: &String| {
                let text = fs::read_to_string(paths::repository().join(place)).unwrap();
                text.contains(&format!("fn {name}()"))
            };
            assert!(places.iter().any(has), "{program}::{name} is no test in {places:?}");
        }
    }

    #[test]
    fn kept_table_that_says_otherwise_is_told() {
        let table = results().table().replace("EPERM", "killed");
        let differences = results().differences(&table);
        assert_eq!(differences, ["paths: c, by serial: EPERM was measured, killed is kept"]);
        assert_eq!(results().differences("").len(), 4);
    }
}
