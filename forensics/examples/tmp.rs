//! tmp
fn main() {
    for path in std::env::args().skip(1) {
        let log = std::fs::read(&path).unwrap();
        let r = forensics::explain::console(&log, &Default::default());
        println!("=== {path}");
        for f in &r.facts {
            if f.of.is_empty() {
                println!("  {}: {}", f.name, f.value);
            } else {
                println!("  {} {}", f.of, f.value)
            }
        }
        for f in &r.findings {
            println!(
                "[{} {} {}] {}\n   why: {}\n   do: {}",
                f.id,
                f.severity.name(),
                f.confidence.name(),
                f.what,
                f.why,
                f.remedy
            );
            for e in f.evidence.get() {
                println!("     | {e}");
            }
        }
    }
}
