//! Plots: the ratios of all jobs side by side, and the seconds of every run in the order of the pairs, which shows what drifts.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use cr_bench::machine::Machine;
use plotters::prelude::*;

use crate::modes::Mode;
use crate::report::Outcome;

const SIZE: (u32, u32) = (1100, 620);

/// Draws all of them into a folder, and says where they are.
pub fn all(folder: &Path, machine: &Machine, outcomes: &[Outcome]) -> Result<Vec<PathBuf>> {
    if outcomes.is_empty() {
        return Ok(Vec::new());
    }
    let (by_job, by_run) = (folder.join("ratios.svg"), folder.join("runs.svg"));
    ratios(&by_job, machine, outcomes).map_err(|e| anyhow!("drawing {}: {e}", by_job.display()))?;
    runs(&by_run, machine, outcomes).map_err(|e| anyhow!("drawing {}: {e}", by_run.display()))?;
    Ok(vec![by_job, by_run])
}

fn colour(mode: Mode) -> RGBColor {
    match mode {
        Mode::Alone => RGBColor(120, 120, 120),
        Mode::Tracked => RGBColor(0, 114, 178),
        Mode::Interval => RGBColor(213, 94, 0),
        Mode::Beside => RGBColor(0, 158, 115),
    }
}

const MODES: [Mode; 3] = [Mode::Tracked, Mode::Interval, Mode::Beside];

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// One dot a mode of each job, at the median, with a line from the smallest to the largest.
fn ratios(path: &Path, machine: &Machine, outcomes: &[Outcome]) -> Drawn {
    let highest = outcomes.iter().flat_map(Outcome::ratios).map(|(_, samples)| samples.spread().1).fold(1.1, f64::max);
    let lowest = outcomes.iter().flat_map(Outcome::ratios).map(|(_, samples)| samples.spread().0).fold(0.95, f64::min);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (title, below) = area.split_vertically(56);
    title.draw(&Text::new("Running time over that without cr", (20, 10), ("sans-serif", 22)))?;
    title.draw(&Text::new(machine.to_string(), (20, 38), ("sans-serif", 12)))?;
    let mut chart = ChartBuilder::on(&below)
        .margin(16)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..outcomes.len() as f64 - 0.5, lowest - 0.01..highest + 0.02)?;
    let name = |x: &f64| match outcomes.get(x.round() as usize) {
        Some(outcome) if (x - x.round()).abs() < 0.01 && *x > -0.1 => outcome.job.name().to_owned(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * outcomes.len() + 1)
        .x_label_formatter(&name)
        .y_label_formatter(&|y| format!("{y:.2} ×"))
        .light_line_style(TRANSPARENT)
        .y_desc("median, smallest and largest of the pairs")
        .draw()?;
    chart.draw_series(LineSeries::new([(-0.5, 1.0), (outcomes.len() as f64 - 0.5, 1.0)], BLACK))?;
    for (index, mode) in MODES.into_iter().enumerate() {
        let colour = colour(mode);
        let at = |job: usize| job as f64 + (index as f64 - 1.0) * 0.2;
        let found: Vec<_> = outcomes
            .iter()
            .enumerate()
            .filter_map(|(job, outcome)| Some((at(job), outcome.ratios().find(|(of, _)| *of == mode)?.1)))
            .collect();
        if found.is_empty() {
            continue;
        }
        chart.draw_series(found.iter().map(|(x, samples)| {
            let (from, to) = samples.spread();
            PathElement::new(vec![(*x, from), (*x, to)], colour.stroke_width(2))
        }))?;
        chart
            .draw_series(found.iter().map(|(x, samples)| Circle::new((*x, samples.median()), 5, colour.filled())))?
            .label(mode.name())
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    area.present()?;
    Ok(())
}

/// Seconds of every run, a chart a job.
fn runs(path: &Path, machine: &Machine, outcomes: &[Outcome]) -> Drawn {
    let area = SVGBackend::new(path, (SIZE.0, 300 * outcomes.len().div_ceil(3) as u32 + 56)).into_drawing_area();
    area.fill(&WHITE)?;
    let (title, below) = area.split_vertically(56);
    title.draw(&Text::new("Seconds of every run, in the order of the pairs", (20, 10), ("sans-serif", 22)))?;
    title.draw(&Text::new(machine.to_string(), (20, 38), ("sans-serif", 12)))?;
    let parts = below.split_evenly((outcomes.len().div_ceil(3), 3));
    for (outcome, part) in outcomes.iter().zip(parts) {
        let all: Vec<(Mode, Vec<f64>)> = outcome.seconds().map(|(mode, samples)| (mode, samples.0)).collect();
        let longest = all.iter().flat_map(|(_, seconds)| seconds.iter().copied()).fold(0.0, f64::max);
        let pairs = all.iter().map(|(_, seconds)| seconds.len()).max().unwrap_or(0);
        let mut chart = ChartBuilder::on(&part)
            .caption(outcome.job.name(), ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(24)
            .y_label_area_size(40)
            .build_cartesian_2d(0.5..pairs as f64 + 0.5, 0.0..longest * 1.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(pairs)
            .x_label_formatter(&|pair| format!("{pair:.0}"))
            .y_labels(5)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (mode, seconds) in all {
            let colour = colour(mode);
            let points: Vec<_> = seconds.iter().enumerate().map(|(pair, s)| (pair as f64 + 1.0, *s)).collect();
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
                .label(mode.name())
                .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()?;
    }
    area.present()?;
    Ok(())
}
