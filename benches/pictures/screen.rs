//! A terminal, as far as a session of commands needs it: it knows line ends, tabs, colours and erasing; it ignores other
//! escape sequences. It keeps the lines that have scrolled away.

use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Style {
    /// 0 to 7 are the usual colours, 8 to 15 the bright ones.
    pub colour: Option<u8>,
    pub is_bold: bool,
    pub is_dim: bool,
}

/// A piece of a line, which is shown from one time to another.
#[derive(Debug, PartialEq)]
pub struct Piece {
    pub row: usize,
    pub column: usize,
    pub text: String,
    pub style: Style,
    pub from: u32,
    pub until: Option<u32>,
}

#[derive(Debug)]
enum State {
    Text,
    Escape,
    /// `ESC [` and its parameters.
    Sequence(String),
    /// `ESC ]`, which sets titles and links; BEL or `ESC \` ends it.
    Title,
}

type Cell = (char, Style);

pub struct Screen {
    width: usize,
    rows: Vec<Vec<Cell>>,
    /// The rows as the pieces show them.
    shown: Vec<Vec<Cell>>,
    changed: BTreeSet<usize>,
    row: usize,
    column: usize,
    style: Style,
    state: State,
    pieces: Vec<Piece>,
}

impl Screen {
    pub fn new(width: usize) -> Self {
        let rows = vec![Vec::new()];
        Self {
            width,
            shown: rows.clone(),
            rows,
            changed: BTreeSet::new(),
            row: 0,
            column: 0,
            style: Style::default(),
            state: State::Text,
            pieces: Vec::new(),
        }
    }

    /// Returns the row and column of the cursor.
    pub fn cursor(&self) -> (usize, usize) {
        (self.row, self.column)
    }

    pub fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }

    pub fn put(&mut self, character: char) {
        match (&mut self.state, character) {
            (State::Text, '\x1b') => self.state = State::Escape,
            (State::Text, _) => self.put_text(character),
            (State::Escape, '[') => self.state = State::Sequence(String::new()),
            (State::Escape, ']') => self.state = State::Title,
            (State::Escape, _) => self.state = State::Text,
            (State::Sequence(parameters), '0'..='?') => parameters.push(character),
            (State::Sequence(parameters), _) => {
                let parameters = std::mem::take(parameters);
                self.state = State::Text;
                self.control(&parameters, character);
            }
            (State::Title, '\x07') => self.state = State::Text,
            (State::Title, '\x1b') => self.state = State::Escape,
            (State::Title, _) => {}
        }
    }

    fn put_text(&mut self, character: char) {
        match character {
            '\r' => self.column = 0,
            '\n' => self.row += 1,
            '\t' => self.column = ((self.column / 8 + 1) * 8).min(self.width - 1),
            '\x08' => self.column = self.column.saturating_sub(1),
            _ if character.is_control() => {}
            _ => {
                if self.column >= self.width {
                    (self.row, self.column) = (self.row + 1, 0);
                }
                let (column, style) = (self.column, self.style);
                let cells = self.change();
                cells.resize(cells.len().max(column + 1), (' ', Style::default()));
                cells[column] = (character, style);
                self.column += 1;
            }
        }
        self.rows.resize(self.rows.len().max(self.row + 1), Vec::new());
    }

    fn change(&mut self) -> &mut Vec<Cell> {
        self.rows.resize(self.rows.len().max(self.row + 1), Vec::new());
        self.changed.insert(self.row);
        &mut self.rows[self.row]
    }

    fn control(&mut self, parameters: &str, name: char) {
        let numbers = parameters.split(';').map(|number| number.parse().unwrap_or(0));
        let number: usize = numbers.clone().next().unwrap_or(0);
        let column = self.column;
        match name {
            'C' => self.column = (column + number.max(1)).min(self.width - 1),
            'D' => self.column = column.saturating_sub(number.max(1)),
            // Below the last line there is nothing to erase.
            'K' | 'J' if number == 0 => self.change().truncate(column),
            'K' => self.change().clear(),
            'm' => numbers.for_each(|number| self.set_style(number)),
            _ => {}
        }
    }

    fn set_style(&mut self, number: usize) {
        match number {
            0 => self.style = Style::default(),
            1 => self.style.is_bold = true,
            2 => self.style.is_dim = true,
            22 => (self.style.is_bold, self.style.is_dim) = (false, false),
            30..=37 => self.style.colour = Some((number - 30) as u8),
            39 => self.style.colour = None,
            90..=97 => self.style.colour = Some((number - 90 + 8) as u8),
            _ => {}
        }
    }

    /// Turns what has changed since the last call into pieces that are shown from this time on.
    pub fn show(&mut self, now: u32) {
        self.shown.resize(self.rows.len(), Vec::new());
        for row in std::mem::take(&mut self.changed) {
            let (before, after) = (&self.shown[row], &self.rows[row]);
            if before == after {
                continue;
            }
            let mut column = before.len();
            if !after.starts_with(before) {
                column = 0;
                let old = self.pieces.iter_mut().filter(|piece| piece.row == row && piece.until.is_none());
                old.for_each(|piece| piece.until = Some(now));
            }
            for cells in after[column..].chunk_by(|(_, one), (_, other)| one == other) {
                let text: String = cells.iter().map(|(character, _)| character).collect();
                let blanks = text.chars().take_while(|&character| character == ' ').count();
                if !text.trim().is_empty() {
                    let (style, text) = (cells[0].1, text.trim().to_owned());
                    self.pieces.push(Piece { row, column: column + blanks, text, style, from: now, until: None });
                }
                column += cells.len();
            }
            self.shown[row].clone_from(after);
        }
    }
}
