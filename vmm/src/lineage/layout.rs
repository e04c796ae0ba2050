//! Where the cards of a tree go.

use super::{Generation, status, words};
use super::{Machine, age, short, span};

/// Pixels between a card and those that came from it, and between two cards one below the other.
const ACROSS: usize = 56;
const BETWEEN: usize = 16;
/// The margin.
pub(super) const MARGIN: usize = 12;
/// A card, its first line and the next ones, in pixels.
pub(super) const WIDTH: usize = 296;
pub(super) const FIRST: usize = 24;
pub(super) const LINE: usize = 18;
/// What is left below the last line.
const BOTTOM: usize = 12;
/// How many characters of a line fit into a card; of its first line, which is larger.
const COLUMNS: usize = 36;
const TITLE_COLUMNS: usize = 30;

/// A card of a machine, or of generations that have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) height: usize,
    /// How it looks.
    pub(super) mood: &'static str,
    /// The first line, as it fits and whole.
    pub(super) title: String,
    pub(super) whole: String,
    pub(super) lines: Vec<String>,
}

/// A line from a generation to one that came from it: from the right of one card to the left of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: (usize, usize),
    pub(super) to: (usize, usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) cards: Vec<Card>,
    pub(super) edges: Vec<Edge>,
}

/// Puts generations that came from another to its right, one below the other.
pub(super) fn layout(now_ms: u64, generations: &[Generation]) -> Layout {
    let own: Vec<Vec<Card>> = generations.iter().map(|it| cards(now_ms, it)).collect();
    let heights: Vec<usize> = own.iter().map(|cards| stacked(cards)).collect();
    let parents = parents(generations);
    // How much room what came from each takes, and each with it.
    let mut below = vec![0; generations.len()];
    let room = |below: &[usize], number: usize| heights[number].max(below[number]);
    for number in (0..generations.len()).rev() {
        if let Some(parent) = parents[number] {
            let more = room(&below, number);
            below[parent] += more + if below[parent] > 0 { BETWEEN } else { 0 };
        }
    }
    let mut layout = Layout {
        width: 2 * MARGIN,
        height: 2 * MARGIN,
        cards: Vec::new(),
        edges: Vec::new(),
    };
    // Where what came from each, and what came from nothing, goes on.
    let mut next = vec![0; generations.len()];
    let mut next_root = MARGIN;
    let mut middles = vec![(0, 0); generations.len()];
    for (number, own) in own.into_iter().enumerate() {
        let room = room(&below, number);
        let place = match parents[number] {
            Some(parent) => &mut next[parent],
            None => &mut next_root,
        };
        let top = *place;
        *place += room + BETWEEN;
        next[number] = top + (room - below[number]) / 2;
        let x = MARGIN + generations[number].depth * (WIDTH + ACROSS);
        let mut y = top + (room - heights[number]) / 2;
        middles[number] = (x, y + heights[number] / 2);
        if let Some(parent) = parents[number] {
            let (parent_x, parent_y) = middles[parent];
            layout.edges.push(Edge {
                from: (parent_x + WIDTH, parent_y),
                to: middles[number],
            });
        }
        for card in own {
            let height = card.height;
            layout.cards.push(Card { x, y, ..card });
            layout.height = layout.height.max(y + height + MARGIN);
            y += height + BETWEEN / 2;
        }
        layout.width = layout.width.max(x + WIDTH + MARGIN);
    }
    layout
}

/// The number of each one's parent: the last one before it that is not as deep.
fn parents(generations: &[Generation]) -> Vec<Option<usize>> {
    let mut path: Vec<usize> = Vec::new();
    let depths = generations.iter().map(|generation| generation.depth);
    depths
        .enumerate()
        .map(|(number, depth)| {
            path.truncate(depth);
            let parent = path.last().copied();
            path.push(number);
            parent
        })
        .collect()
}

fn stacked(cards: &[Card]) -> usize {
    let heights: usize = cards.iter().map(|card| card.height).sum();
    heights + cards.len().saturating_sub(1) * (BETWEEN / 2)
}

fn cards(now_ms: u64, generation: &Generation) -> Vec<Card> {
    let id = generation.id.as_deref().unwrap_or_default();
    if generation.machines.is_empty() {
        let line = format!("generation {}", short(id));
        return vec![card("ended", words::ended(generation), vec![line])];
    }
    let machines = generation.machines.iter();
    machines
        .map(|machine| of_machine(now_ms, machine))
        .collect()
}

fn of_machine(now_ms: u64, machine: &Machine) -> Card {
    let (mood, status) = status(machine);
    let mood = match mood {
        words::Mood::Ready => "ready",
        words::Mood::Adapting => "adapting",
        words::Mood::Quiet => "quiet",
        words::Mood::Silent => "silent",
    };
    let mut lines = vec![status];
    if let Some(generation) = &machine.generation {
        let since = now_ms.saturating_sub(generation.since_unix_ms);
        let id = short(&generation.id);
        lines.push(format!("generation {id}, counter {}", generation.counter));
        lines.push(format!("for {}, process {}", age(since), machine.pid));
    } else {
        lines.push(format!("process {}", machine.pid));
    }
    let stages = words::stages(machine);
    lines.extend(stages.chunks(2).map(|two| {
        let texts = two.iter().map(|(name, us)| format!("{name} {}", span(*us)));
        texts.collect::<Vec<_>>().join(", ")
    }));
    lines.extend(machine.drawn.iter().map(|drawn| format!("drew {drawn}")));
    card(mood, machine.id.clone(), lines)
}

fn card(mood: &'static str, whole: String, lines: Vec<String>) -> Card {
    Card {
        x: 0,
        y: 0,
        height: FIRST + lines.len() * LINE + BOTTOM,
        mood,
        title: fitting(&whole, TITLE_COLUMNS),
        whole,
        lines: lines.iter().map(|line| fitting(line, COLUMNS)).collect(),
    }
}

/// As much of a text as fits into so many columns. Letters of many scripts are taken for two columns wide.
fn fitting(text: &str, columns: usize) -> String {
    let width = |c: char| 1 + usize::from(u32::from(c) >= 0x1100);
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut used = 1;
    let fits = |c: &char| {
        used += width(*c);
        used <= columns
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push('\u{2026}');
    cut
}
