//! The tree as a page: HTML with an SVG in it, all in one file.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::layout::{Card, Edge, FIRST, LINE, Layout, WIDTH, layout};
use super::{Lineage, Machine};

/// What the page says besides the tree.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// What the tree is of.
    pub title: &'a str,
    /// What happens at the moment.
    pub note: Option<&'a str>,
    /// The page fetches itself anew twice a second.
    pub live: bool,
}

const STYLE: &str = include_str!("page.css");
const LIVE: &str = include_str!("page.js");

/// The page. It needs nothing else, and no script unless it is live.
pub fn page(lineage: &Lineage, page: Page<'_>) -> String {
    let scripts = match page.live {
        true => "script-src 'unsafe-inline'; connect-src 'self'; ",
        false => "",
    };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; {scripts}style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
        title = escaped(page.title),
    );
    add(&mut html, format_args!("<p>{}</p>\n", summary(lineage)));
    if let Some(note) = page.note {
        add(
            &mut html,
            format_args!("<p class=\"note\">{}</p>\n", escaped(note)),
        );
    }
    let layout = layout(lineage.taken_unix_ms, &lineage.generations);
    svg(&mut html, &layout);
    html.push_str(LEGEND);
    html.push_str("</main>\n");
    if page.live {
        add(&mut html, format_args!("<script>\n{LIVE}</script>\n"));
    }
    html.push_str("</body>\n</html>\n");
    html
}

const LEGEND: &str = "<p class=\"legend\">A line leads from a generation to those that came from it. Cards with a dashed border have ended.</p>\n";

fn summary(lineage: &Lineage) -> String {
    let machines: usize = lineage.generations.iter().map(|it| it.machines.len()).sum();
    let ended: usize = lineage.generations.iter().map(|it| it.ended).sum();
    let drawn: Vec<&str> = lineage
        .generations
        .iter()
        .flat_map(|it| &it.machines)
        .filter_map(drawn)
        .collect();
    let mut text = format!(
        "{machines} machine{}, {ended} generation{} ended",
        plural(machines),
        plural(ended)
    );
    if drawn.len() > 1 {
        let mut different = drawn.clone();
        different.sort_unstable();
        different.dedup();
        let different = different.len();
        add(
            &mut text,
            format_args!(
                "; {different} of {} numbers drawn are different",
                drawn.len()
            ),
        );
    }
    let taken = UNIX_EPOCH + Duration::from_millis(lineage.taken_unix_ms.min(LAST_MS));
    let taken = humantime::format_rfc3339_seconds(taken);
    add(&mut text, format_args!("; <time>{taken}</time>"));
    text
}

/// The end of the year 9999, which is the last that can be shown.
const LAST_MS: u64 = 253_402_300_799_000;

fn drawn(machine: &Machine) -> Option<&str> {
    machine.drawn.as_deref()
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn svg(html: &mut String, layout: &Layout) {
    let Layout { width, height, .. } = layout;
    add(
        html,
        format_args!(
            "<div class=\"tree\">\n<svg role=\"img\" aria-label=\"the tree of generations\" xmlns=\"http://www.w3.org/2000/svg\" \
             width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
        ),
    );
    for Edge { from, to } in &layout.edges {
        let ((x, y), (to_x, to_y)) = (*from, *to);
        let middle = x.midpoint(to_x);
        add(
            html,
            format_args!(
                "<path class=\"edge\" d=\"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}\"/>\n"
            ),
        );
    }
    layout.cards.iter().for_each(|card| draw(html, card));
    html.push_str("</svg>\n</div>\n");
}

fn draw(html: &mut String, card: &Card) {
    let Card {
        x, y, height, mood, ..
    } = card;
    let (text_x, mut text_y) = (x + 20, y + FIRST);
    add(
        html,
        format_args!(
            "<g class=\"card {mood}\"><title>{}</title>\
             <rect class=\"box\" x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\
             <rect class=\"bar\" x=\"{x}\" y=\"{y}\" width=\"6\" height=\"{height}\" rx=\"3\"/>\
             <text class=\"name\" x=\"{text_x}\" y=\"{text_y}\">{}</text>",
            escaped(&card.whole),
            escaped(&card.title),
        ),
    );
    for (number, line) in card.lines.iter().enumerate() {
        text_y += LINE;
        let class = if number == 0 { " class=\"status\"" } else { "" };
        add(
            html,
            format_args!(
                "<text{class} x=\"{text_x}\" y=\"{text_y}\">{}</text>",
                escaped(line)
            ),
        );
    }
    html.push_str("</g>\n");
}

/// Text of others' as it may stand in HTML, between tags or in quotes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

fn add(html: &mut String, text: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = html.write_fmt(text);
}
