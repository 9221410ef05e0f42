//! Where the show is seen: lines that scroll, above a board that stays. In a pipe, lines only.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use terminal_size::{Height, Width, terminal_size};

use crate::{board::Board, clients::Clients, text::Line};

/// The screen, shared by all who write on it.
#[derive(Clone)]
pub struct Screen(Arc<Shared>);

struct Shared {
    board: Board,
    /// Whether there is a board that stays.
    live: bool,
    colours: bool,
    started: Instant,
    output: Mutex<Output>,
}

/// What stands on the terminal.
#[derive(Default)]
struct Output {
    /// Lines of the board, above the cursor.
    shown: usize,
    closed: bool,
}

impl Screen {
    /// Opens the screen: a terminal gets the board too, unless it is to be `plain`.
    #[must_use]
    pub fn open(plain: bool) -> Self {
        let screen = Self(Arc::new(Shared {
            board: Board::default(),
            live: !plain && has_room_for_a_board(),
            colours: !plain && takes_colours(),
            started: Instant::now(),
            output: Mutex::default(),
        }));
        let shared = Arc::clone(&screen.0);
        thread::spawn(move || shared.keep_up());
        screen
    }

    /// Begins an act.
    pub fn act(&self, number: usize, title: &str) {
        self.0.board.set_title(&format!("{number}  {title}"));
        self.say(Line::new());
        self.say(Line::new().strong(format!("{number}  {title}")));
    }

    /// Shows a command as a person would type it.
    pub fn command(&self, line: &str) {
        self.say(Line::new().dim("  # ").strong(line));
    }

    /// Shows a line.
    pub fn say(&self, line: impl Into<Line>) {
        self.0.write(&line.into());
    }

    /// From now on the board shows these clients.
    pub fn watch(&self, clients: Arc<Clients>) {
        self.0.board.watch(clients);
    }

    /// From now on the board marks this share of the canary, in percent.
    pub fn want(&self, percent: f64) {
        self.0.board.want(percent);
    }

    /// How many characters a line may have, if that is limited.
    #[must_use]
    pub fn width(&self) -> Option<usize> {
        self.0.live.then(width)
    }

    /// How long the screen has been open.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Takes the board away. Lines can still be shown.
    pub fn close(&self) {
        if self.0.live {
            self.0.draw(None, false);
        }
        self.0.board.forget();
        self.0.output.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }
}

impl Shared {
    /// Redraws the board, or tells in a pipe now and then how it stands.
    fn keep_up(&self) {
        const FRAME: Duration = Duration::from_millis(100);
        const HEARTBEAT: Duration = Duration::from_secs(5);
        let mut next = Instant::now() + HEARTBEAT;
        while !self.output.lock().unwrap_or_else(PoisonError::into_inner).closed {
            thread::sleep(FRAME);
            if self.live {
                self.draw(None, true);
            } else if Instant::now() >= next {
                next += HEARTBEAT;
                if let Some(line) = self.board.in_words() {
                    self.write(&line);
                }
            }
        }
    }

    fn write(&self, line: &Line) {
        if self.live {
            self.draw(Some(line), true);
        } else {
            let seconds = self.started.elapsed().as_secs_f64();
            let text = line.render(false, None);
            emit(&if text.is_empty() { "\n".to_owned() } else { format!("{seconds:>5.1}  {text}\n") });
        }
    }

    /// Takes the board off, adds a line, and puts the board below it: in one write, so that nothing
    /// flickers. The escapes are those of ECMA-48 (CUU, ED), and synchronized output (DECSET 2026),
    /// which terminals that do not know it ignore.
    fn draw(&self, line: Option<&Line>, with_board: bool) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if output.closed {
            if let Some(line) = line {
                emit(&format!("{}\n", line.render(self.colours, None)));
            }
            return;
        }
        let width = width();
        let board = if with_board { self.board.lines(width, self.started.elapsed()) } else { Vec::new() };
        let mut text = String::from("\x1b[?2026h\r");
        if output.shown > 0 {
            text += &format!("\x1b[{}A", output.shown);
        }
        text += "\x1b[J";
        if let Some(line) = line {
            text += &line.render(self.colours, None);
            text += "\n";
        }
        for row in &board {
            // A row as wide as the terminal would take two.
            text += &row.render(self.colours, Some(width.saturating_sub(1)));
            text += "\n";
        }
        text += "\x1b[?2026l";
        output.shown = board.len();
        emit(&text);
    }
}

/// Writes at once. Where nobody reads any more, nobody watches: that is the end.
pub fn emit(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        process::exit(1);
    }
}

/// Whether colours are wanted: on a terminal that has some, unless `NO_COLOR` says otherwise.
#[must_use]
pub fn takes_colours() -> bool {
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_clever_terminal() && !no_color
}

fn width() -> usize {
    terminal_size().map_or(80, |(Width(width), _)| width.into())
}

fn is_clever_terminal() -> bool {
    io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn has_room_for_a_board() -> bool {
    const LINES: u16 = 20;
    const COLUMNS: u16 = 72;
    let size = terminal_size();
    is_clever_terminal()
        && size.is_some_and(|(Width(width), Height(height))| width >= COLUMNS && height >= LINES)
}
