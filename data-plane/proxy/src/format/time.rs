//! Dates: `%START_TIME(...)%` and the `date` header. UTC only, as in Envoy.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment as a calendar has it.
struct Civil {
    seconds: u64,
    nanos: u32,
    year: u64,
    month: usize,
    day: u64,
    weekday: usize,
    yearday: u64,
}

impl Civil {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let days = since.as_secs() / 86_400;
        // Howard Hinnant, "chrono-compatible low-level date algorithms": civil_from_days.
        let z = days + 719_468;
        let era = z / 146_097;
        let day_of_era = z % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        #[expect(clippy::cast_possible_truncation, reason = "1 to 12, and 0 to 6")]
        let (month, weekday) = (month as usize, ((days + 4) % 7) as usize);
        let yearday = before.get(month - 1).copied().unwrap_or(0) + day + u64::from(leap && month > 2);
        Self { seconds: since.as_secs(), nanos: since.subsec_nanos(), year, month, day, weekday, yearday }
    }

    const fn hour(&self) -> u64 {
        self.seconds / 3600 % 24
    }
    const fn minute(&self) -> u64 {
        self.seconds / 60 % 60
    }
    const fn second(&self) -> u64 {
        self.seconds % 60
    }
    fn month_name(&self) -> &'static str {
        MONTHS.get(self.month - 1).copied().unwrap_or("")
    }
    fn weekday_name(&self) -> &'static str {
        WEEKDAYS.get(self.weekday).copied().unwrap_or("")
    }
}

/// Appends `time` in a strftime format with Envoy's `%1f` to `%9f`; an empty format is ISO 8601 with milliseconds.
pub(crate) fn write_time(format: &str, time: SystemTime, out: &mut Vec<u8>) {
    let at = Civil::of(time);
    if format.is_empty() {
        iso(&at, 3, out);
        return;
    }
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            let mut buffer = [0; 4];
            out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
            continue;
        }
        match rest.next() {
            Some(digit @ '1'..='9') => match rest.next() {
                Some('f') => fraction(&at, digit.to_digit(10).unwrap_or(3), out),
                other => out.extend(format!("%{digit}{}", other.map(String::from).unwrap_or_default()).into_bytes()),
            },
            Some(specifier) => write_specifier(specifier, &at, out),
            None => out.push(b'%'),
        }
    }
}

fn write_specifier(specifier: char, at: &Civil, out: &mut Vec<u8>) {
    let written = match specifier {
        'Y' => write!(out, "{}", at.year),
        'y' => write!(out, "{:02}", at.year % 100),
        'm' => write!(out, "{:02}", at.month),
        'd' => write!(out, "{:02}", at.day),
        'e' => write!(out, "{:2}", at.day),
        'j' => write!(out, "{:03}", at.yearday),
        'H' => write!(out, "{:02}", at.hour()),
        'I' => write!(out, "{:02}", (at.hour() + 11) % 12 + 1),
        'M' => write!(out, "{:02}", at.minute()),
        'S' => write!(out, "{:02}", at.second()),
        'p' => write!(out, "{}", if at.hour() < 12 { "AM" } else { "PM" }),
        'a' => write!(out, "{}", at.weekday_name().get(..3).unwrap_or("")),
        'A' => write!(out, "{}", at.weekday_name()),
        'b' | 'h' => write!(out, "{}", at.month_name().get(..3).unwrap_or("")),
        'B' => write!(out, "{}", at.month_name()),
        'F' => write!(out, "{}-{:02}-{:02}", at.year, at.month, at.day),
        'T' => write!(out, "{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second()),
        'R' => write!(out, "{:02}:{:02}", at.hour(), at.minute()),
        's' => write!(out, "{}", at.seconds),
        'f' => write!(out, "{:09}", at.nanos),
        'z' => write!(out, "+0000"),
        'Z' => write!(out, "UTC"),
        'n' => writeln!(out),
        't' => write!(out, "\t"),
        '%' => write!(out, "%"),
        other => write!(out, "%{other}"),
    };
    debug_assert!(written.is_ok(), "a vector takes everything");
}

/// `2026-11-21T12:00:00.123Z`
fn iso(at: &Civil, digits: u32, out: &mut Vec<u8>) {
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    let written = write!(out, "{}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.", at.year, at.month, at.day);
    debug_assert!(written.is_ok(), "a vector takes everything");
    fraction(at, digits, out);
    out.push(b'Z');
}

fn fraction(at: &Civil, digits: u32, out: &mut Vec<u8>) {
    let value = at.nanos / 10_u32.pow(9 - digits.min(9));
    let written = write!(out, "{value:0width$}", width = digits as usize);
    debug_assert!(written.is_ok(), "a vector takes everything");
}

/// RFC 9110 §5.6.7: `Sat, 21 Nov 2026 12:00:00 GMT`, always 29 bytes.
pub(crate) fn http_date(time: SystemTime, out: &mut Vec<u8>) {
    write_time("%a, %d %b %Y %H:%M:%S GMT", time, out);
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
