//! Figures as JSON, with all values and with what they were measured on; and back.

use super::figure::{Better, Figure, Figures, ratio};
use super::host::Host;
use super::subject::QEMU;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Everything that one benchmark found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The machine.
    pub(crate) host: Host,
    /// What was measured.
    pub(crate) figures: Figures,
    /// The steps of a launch, where the broker tells them.
    pub(crate) timings: Option<Value>,
}

/// As one JSON object.
pub(crate) fn write(findings: &Findings) -> Value {
    let figures = &findings.figures;
    let one = |figure: &Figure| {
        let other = figures.find(&figure.group, &figure.name, QEMU).filter(|_| figure.subject != QEMU);
        json!({
            "group": figure.group, "name": figure.name, "subject": figure.subject, "unit": figure.unit,
            "better": match figure.better { Better::Lower => "lower", Better::Higher => "higher" },
            "median": figure.median(), "min": figure.min(), "max": figure.max(),
            "times_qemu": other.and_then(|other| ratio(figure, other)), "values": figure.values,
        })
    };
    json!({
        "host": findings.host.json(), "timings": findings.timings,
        "figures": figures.0.iter().map(one).collect::<Vec<_>>(),
    })
}

/// Back from [`write`].
///
/// # Errors
/// When something is missing.
pub(crate) fn read(value: &Value) -> Result<Findings> {
    let all = value.get("figures").and_then(Value::as_array).context("the JSON has no array `figures`")?;
    let figures = all.iter().map(figure).collect::<Result<Vec<_>>>()?;
    let timings = value.get("timings").filter(|timings| timings.is_array()).cloned();
    Ok(Findings { host: Host::read(value.get("host").unwrap_or(&Value::Null)), figures: Figures(figures), timings })
}

fn figure(value: &Value) -> Result<Figure> {
    let text = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .with_context(|| format!("a figure has no `{key}`: {value}"))
    };
    let better = match text("better")?.as_str() {
        "lower" => Better::Lower,
        "higher" => Better::Higher,
        other => bail!("a figure's `better` is {other:?}; it must be lower or higher"),
    };
    let values = value.get("values").and_then(Value::as_array).context("a figure has no array `values`")?;
    let values: Option<Vec<f64>> = values.iter().map(Value::as_f64).collect();
    let values =
        values.filter(|values| !values.is_empty()).context("a figure's `values` must be numbers, at least one")?;
    Ok(Figure {
        group: text("group")?,
        name: text("name")?,
        subject: text("subject")?,
        unit: text("unit")?,
        better,
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::figure;
    use super::super::subject::BULKHEAD;
    use super::*;

    fn sample() -> Findings {
        Findings {
            figures: Figures(vec![figure(BULKHEAD, &[1.5, 2.0]), figure(QEMU, &[4.0, 8.0])]),
            timings: Some(json!([{"process": "broker", "step": "config", "from_us": 0, "to_us": 10}])),
            ..Findings::default()
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let text = write(&sample()).to_string();
        let back = read(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(back.figures.0, sample().figures.0);
        assert_eq!(back.timings, sample().timings);
    }

    #[test]
    fn ratio_to_qemu_stands_beside_others_only() {
        let value = write(&sample());
        assert_eq!(value["figures"][0]["times_qemu"], json!(0.3125));
        assert_eq!(value["figures"][1]["times_qemu"], Value::Null);
    }

    #[test]
    fn figures_that_lack_something_are_refused() {
        let mut value = write(&sample());
        value["figures"][0]["values"] = json!([]);
        assert!(read(&value).unwrap_err().to_string().contains("at least one"));
        value["figures"][0]["better"] = json!("more");
        assert!(read(&value).unwrap_err().to_string().contains("lower or higher"));
        assert!(read(&json!({})).is_err());
    }
}
