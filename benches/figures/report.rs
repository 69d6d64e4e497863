//! What was measured, as a table and as JSON.

use comfy_table::{Table, presets};
use cr_bench::machine::Machine;
use cr_bench::sample::Samples;
use serde_json::{Value, json};

/// One promise, and how it was kept.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in `SPECIFICATION.md`.
    pub name: String,
    /// The figure: the median of `figures`.
    pub figures: Samples,
    /// What it must not exceed.
    pub bound: f64,
    /// `×`, `ms`, `MiB`, `%`.
    pub unit: &'static str,
    /// The measurements behind it, with their names and units.
    pub behind: Vec<(String, Samples)>,
}

impl Row {
    /// Whether the figure is within its bound.
    pub fn is_met(&self) -> bool {
        self.figures.median() <= self.bound
    }

    fn verdict(&self) -> &'static str {
        if self.is_met() { "met" } else { "MISSED" }
    }
}

/// A table for people.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["figure", "measured (from … to)", "bound", "verdict", "medians behind it"]);
    for row in rows {
        let (from, to) = row.figures.spread();
        // Ratios are told more exactly than milliseconds.
        let digits = |name: &str| if name.ends_with('×') { 3 } else { 1 };
        let told = |(name, samples): &(String, Samples)| format!("{name} {:.*}", digits(name), samples.median());
        let behind: Vec<String> = row.behind.iter().map(told).collect();
        table.add_row([
            row.name.clone(),
            format!("{:.3} {} ({from:.3} … {to:.3})", row.figures.median(), row.unit),
            format!("{:.3} {}", row.bound, row.unit),
            row.verdict().to_owned(),
            behind.join(", "),
        ]);
    }
    table.to_string()
}

/// The same for programs, with every measurement.
pub fn json(machine: &Machine, rows: &[Row]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let behind: serde_json::Map<_, _> =
                row.behind.iter().map(|(name, samples)| (name.clone(), json!(samples.0))).collect();
            json!({
                "name": row.name, "measured": row.figures.median(), "figures": row.figures.0, "bound": row.bound,
                "unit": row.unit, "met": row.is_met(), "behind": behind,
            })
        })
        .collect();
    json!({ "machine": machine, "rows": rows })
}
