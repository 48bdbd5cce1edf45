//! A recording of a terminal in which somebody boots the guest, as an SVG that needs no script. What it shows was printed by
//! the programs; only the keys and the shell's prompt are given here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::screen::{Piece, Screen, Style};
use super::{Result, cargo, svg};

const COLUMNS: u16 = 88;
const ROWS: u16 = 24;
const SHELL_PROMPT: &str = "$ ";
/// Every prompt of root's shell in the guest ends so.
const GUEST_PROMPT: &str = "# ";
/// Which prompt is awaited, and what is typed there. The session ends at the shell's prompt.
const KEYS: [(&str, &str); 4] = [
    (SHELL_PROMPT, "cargo run --example boot"),
    (GUEST_PROMPT, "uname -srm"),
    (GUEST_PROMPT, "nproc"),
    (GUEST_PROMPT, "poweroff"),
];
const TYPING_PAUSE: Duration = Duration::from_millis(100);
const READING_PAUSE: Duration = Duration::from_millis(900);
const TIMEOUT: Duration = Duration::from_secs(300);

/// Longer waits are shown as this.
const MAX_WAIT_MS: u32 = 1500;
const FRAME_MS: u32 = 100;
const HOLD_MS: u32 = 8000;

const LINE_HEIGHT: usize = 19;
const CHARACTER_WIDTH: f64 = 8.4;
const PADDING: usize = 16;
const TITLE_BAR: usize = 30;

/// The colours of a terminal that is dark on every page: black, red, green, yellow, blue, magenta, cyan, white, and bright.
const COLOURS: [&str; 16] = [
    "#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4", "#6e7681", "#ffa198",
    "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff",
];

/// What the checkout's directory is called in the picture.
const CHECKOUT: &str = "~/hyperkit";

pub fn draw(root: &Path) -> Result<String> {
    // A recording of the compiler would show nothing.
    cargo(root, &["build", "--example", "boot"])?;
    let mut session = Session::start(root)?;
    for (prompt, keys) in KEYS {
        session.wait_for_prompt(prompt)?;
        session.record(READING_PAUSE)?;
        session.type_line(keys)?;
    }
    session.wait_for_prompt(SHELL_PROMPT)?;
    let output = rename_checkout(std::mem::take(&mut session.output), root)?;
    Ok(animate(&output))
}

/// Replaces the path of the checkout, the only thing that is not shown as it was printed.
fn rename_checkout(mut output: Vec<(Instant, u8)>, root: &Path) -> Result<Vec<(Instant, char)>> {
    let path = root.to_str().ok_or("the path of the repository is not UTF-8")?;
    let bytes = |output: &[(Instant, u8)]| output.iter().map(|&(_, byte)| byte).collect::<Vec<_>>();
    while let Some(at) = bytes(&output).windows(path.len()).position(|window| window == path.as_bytes()) {
        let time = output[at].0;
        output.splice(at..at + path.len(), CHECKOUT.bytes().map(|byte| (time, byte)));
    }
    let text = String::from_utf8(bytes(&output))?;
    Ok(text.char_indices().map(|(at, character)| (output[at].0, character)).collect())
}

/// A shell in a terminal.
struct Session {
    shell: Child,
    keyboard: File,
    from_terminal: Receiver<Vec<u8>>,
    output: Vec<(Instant, u8)>,
    /// How much of the output is older than the last command.
    typed_at: usize,
}

impl Session {
    fn start(root: &Path) -> Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        let name = ptsname(&terminal, Vec::new())?;
        let inside = OpenOptions::new().read(true).write(true).open(name.to_str()?)?;
        tcsetwinsize(&inside, Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 })?;
        // With the terminal as its controlling terminal, everything in it ends when this program does.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "sh", "-i"]).current_dir(root).env_remove("ENV").env("PS1", SHELL_PROMPT);
        command.env("TERM", "xterm").env("CARGO_TERM_PROGRESS_WHEN", "never");
        command.stdin(inside.try_clone()?).stdout(inside.try_clone()?).stderr(inside);
        let (send, from_terminal) = channel();
        let shell = command.spawn()?;
        let mut reader = File::from(terminal);
        let keyboard = reader.try_clone()?;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { shell, keyboard, from_terminal, output: Vec::new(), typed_at: 0 })
    }

    fn record(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            match self.from_terminal.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => {
                    let now = Instant::now();
                    self.output.extend(bytes.into_iter().map(|byte| (now, byte)));
                }
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err("the shell exited".into()),
            }
        }
    }

    /// Waits for a prompt at the beginning of a line. That of the guest may name a directory first, and the kernel may have
    /// printed something behind it.
    fn wait_for_prompt(&mut self, prompt: &str) -> Result<()> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let new: Vec<_> = self.output[self.typed_at..].iter().map(|&(_, byte)| byte).collect();
            let new = String::from_utf8_lossy(&new).into_owned();
            let mut lines = new.split(['\r', '\n']);
            let is_shell = lines.clone().any(|line| line.starts_with(SHELL_PROMPT));
            if is_shell && prompt != SHELL_PROMPT {
                return Err(format!("no guest is there to type in, but this output:\n{new}").into());
            }
            if is_shell || (prompt != SHELL_PROMPT && lines.any(|line| line.find(prompt).is_some_and(|at| at < 8))) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("timed out waiting for {prompt:?} in this output:\n{new}").into());
            }
            self.record(Duration::from_millis(20))?;
        }
    }

    fn type_line(&mut self, line: &str) -> Result<()> {
        for key in line.bytes() {
            self.keyboard.write_all(&[key])?;
            self.record(TYPING_PAUSE)?;
        }
        self.record(TYPING_PAUSE * 4)?;
        self.typed_at = self.output.len();
        Ok(self.keyboard.write_all(b"\r")?)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The shell hangs up its jobs, the hypervisor among them.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// The position of the cursor at a point in time.
struct Frame {
    at: u32,
    cursor: (usize, usize),
}

fn animate(output: &[(Instant, char)]) -> String {
    let mut screen = Screen::new(COLUMNS.into());
    let mut frames = vec![Frame { at: 0, cursor: (0, 0) }];
    let (mut now, mut before) = (0, output.first().map(|&(time, _)| time));
    for &(time, character) in output {
        let waited = time.duration_since(before.replace(time).unwrap_or(time)).as_millis();
        now += u32::try_from(waited).unwrap_or(MAX_WAIT_MS).min(MAX_WAIT_MS);
        let frame = now / FRAME_MS * FRAME_MS;
        if frames.last().is_some_and(|last| last.at != frame) {
            finish(&mut screen, &mut frames);
            frames.push(Frame { at: frame, cursor: (0, 0) });
        }
        screen.put(character);
    }
    finish(&mut screen, &mut frames);
    write_svg(&screen.into_pieces(), &frames, now + HOLD_MS)
}

fn finish(screen: &mut Screen, frames: &mut [Frame]) {
    if let Some(frame) = frames.last_mut() {
        screen.show(frame.at);
        frame.cursor = screen.cursor();
    }
}

/// Moves the sheet so that this line is visible.
fn scroll(row: usize) -> String {
    format!("transform:translateY(-{}px)", (row + 1).saturating_sub(ROWS.into()) * LINE_HEIGHT)
}

fn place((row, column): (usize, usize)) -> String {
    format!("transform:translate({:.1}px,{}px)", column as f64 * CHARACTER_WIDTH, row * LINE_HEIGHT)
}

/// Returns the styles: without motion the last frame is shown.
fn write_style(pieces: &[Piece], frames: &[Frame], last: (usize, usize), duration: u32) -> String {
    let mut style = format!(
        "#recording text{{font-family:{};fill:#e6edf3;white-space:pre}}\n#recording .screen{{fill:#161b22;stroke:#30363d}}\n\
         #recording .dot{{fill:#484f58}}\n#recording .cursor{{fill:#8b949e}}\n#recording .gone{{opacity:0}}\n\
         #recording .bold{{font-weight:700}}\n#recording .dim{{opacity:.7}}\n\
         #recording .sheet{{{}}}\n#recording .cursor{{{}}}\n",
        svg::MONO,
        scroll(last.0),
        place(last)
    );
    let used: BTreeSet<_> = pieces.iter().filter_map(|piece| piece.style.colour).collect();
    for colour in used {
        let _ = writeln!(style, "#recording .c{colour}{{fill:{}}}", COLOURS[usize::from(colour)]);
    }
    let _ = writeln!(style, "@media (prefers-reduced-motion:no-preference){{");
    let _ = writeln!(style, "#recording .moves{{animation:{duration}ms step-end infinite}}");
    let percent = |time: u32| format!("{:.3}%", f64::from(time) * 100.0 / f64::from(duration));
    let mut keyframes = |name: &str, steps: &str| {
        let _ = writeln!(style, "#recording .{name}{{animation-name:recording-{name}}}");
        let _ = writeln!(style, "@keyframes recording-{name}{{{steps}}}");
    };
    let steps = |step: fn(&Frame) -> String| -> String {
        let steps: Vec<_> = frames.iter().map(|frame| (frame.at, step(frame))).collect();
        let changes = steps.chunk_by(|(_, one), (_, other)| one == other).map(|same| &same[0]);
        changes.map(|(at, step)| format!("{}{{{step}}}", percent(*at))).collect::<Vec<_>>().concat()
    };
    keyframes("sheet", &steps(|frame| scroll(frame.cursor.0)));
    keyframes("cursor", &steps(|frame| place(frame.cursor)));
    let appear: BTreeSet<_> = pieces.iter().map(|piece| piece.from).filter(|&from| from > 0).collect();
    let vanish: BTreeSet<_> = pieces.iter().filter_map(|piece| piece.until).collect();
    for time in appear {
        keyframes(&format!("a{}", time / FRAME_MS), &format!("0%{{opacity:0}}{},to{{opacity:1}}", percent(time)));
    }
    for time in vanish {
        keyframes(&format!("v{}", time / FRAME_MS), &format!("0%{{opacity:1}}{},to{{opacity:0}}", percent(time)));
    }
    style.push_str("}\n");
    style
}

/// Draws a long sheet with all lines, each piece of which appears at its time, behind a window that moves down.
fn write_svg(pieces: &[Piece], frames: &[Frame], duration: u32) -> String {
    let last = frames.last().map_or((0, 0), |frame| frame.cursor);
    let rows = (last.0 + 1).min(ROWS.into());
    let (inner_width, inner_height) = ((f64::from(COLUMNS) * CHARACTER_WIDTH).ceil() as usize, rows * LINE_HEIGHT);
    let (width, height) = (inner_width + 2 * PADDING, inner_height + TITLE_BAR + PADDING);
    let mut body = String::new();
    let _ = writeln!(
        body,
        "<rect class=\"screen\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>",
        width - 1,
        height - 1
    );
    for dot in 0..3 {
        let _ = writeln!(body, "<circle class=\"dot\" cx=\"{}\" cy=\"15\" r=\"5\"/>", 20 + 18 * dot);
    }
    let _ = writeln!(
        body,
        "<svg x=\"{PADDING}\" y=\"{TITLE_BAR}\" width=\"{inner_width}\" height=\"{inner_height}\" \
         xml:space=\"preserve\">\n<g class=\"moves sheet\">\n\
         <rect class=\"moves cursor\" y=\"2\" width=\"{CHARACTER_WIDTH}\" height=\"{}\"/>",
        LINE_HEIGHT - 3
    );
    // What appears and vanishes at the same times is one group.
    let mut groups = BTreeMap::<_, String>::new();
    for piece in pieces {
        groups.entry((piece.from, piece.until)).or_default().push_str(&write_piece(piece));
    }
    for ((from, until), mut texts) in groups {
        if from > 0 {
            texts = format!("<g class=\"moves a{}\">\n{texts}</g>\n", from / FRAME_MS);
        }
        if let Some(until) = until {
            texts = format!("<g class=\"moves gone v{}\">\n{texts}</g>\n", until / FRAME_MS);
        }
        body.push_str(&texts);
    }
    body.push_str("</g>\n</svg>\n");
    let title = "A terminal: cargo run --example boot boots a Linux guest, in which commands are typed";
    svg::picture("recording", [width, height], title, &write_style(pieces, frames, last, duration), &body)
}

fn write_piece(piece: &Piece) -> String {
    let pixels = |columns: usize| (columns as f64 * CHARACTER_WIDTH * 10.0).round() / 10.0;
    let (x, y) = (pixels(piece.column), piece.row * LINE_HEIGHT + 14);
    // Fonts differ in their widths.
    let length = match piece.text.chars().count() {
        1 => String::new(),
        count => format!(" textLength=\"{}\"", pixels(count)),
    };
    let (class, text) = (class(piece.style), svg::escape(&piece.text));
    format!("<text{class} x=\"{x}\" y=\"{y}\"{length}>{text}</text>\n")
}

fn class(style: Style) -> String {
    let mut classes: Vec<_> = style.colour.map(|colour| format!("c{colour}")).into_iter().collect();
    classes.extend(style.is_bold.then(|| "bold".to_owned()));
    classes.extend(style.is_dim.then(|| "dim".to_owned()));
    if classes.is_empty() { String::new() } else { format!(" class=\"{}\"", classes.join(" ")) }
}
