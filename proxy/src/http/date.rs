//! The Date of responses that Sluice itself makes (RFC 9110 §5.6.7), and the time in its logs (RFC 3339). The
//! caller brings the clock.

/// The last second of the year 9999.
const LAST: u64 = 253_402_300_799;

/// IMF-fixdate of `unix_seconds`, for years up to 9999: always 29 bytes.
#[must_use]
pub fn imf_fixdate(unix_seconds: u64) -> [u8; 29] {
    const DAYS: &[u8] = b"ThuFriSatSunMonTueWed";
    const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

    let seconds = unix_seconds.min(LAST);
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);

    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let weekday = (days % 7) as usize * 3;
    text[..3].copy_from_slice(&DAYS[weekday..weekday + 3]);
    text[8..11].copy_from_slice(&MONTHS[month as usize * 3..month as usize * 3 + 3]);
    two_digits(&mut text[5..7], day);
    two_digits(&mut text[12..14], year / 100);
    two_digits(&mut text[14..16], year % 100);
    two_digits(&mut text[17..19], second_of_day / 3600);
    two_digits(&mut text[20..22], second_of_day / 60 % 60);
    two_digits(&mut text[23..25], second_of_day % 60);
    text
}

/// `unix_micros` as RFC 3339 has it, in UTC, for years up to 9999: always 27 bytes.
#[must_use]
pub fn rfc3339_micros(unix_micros: u64) -> [u8; 27] {
    let seconds = (unix_micros / 1_000_000).min(LAST);
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"1970-01-01T00:00:00.000000Z";
    two_digits(&mut text[..2], year / 100);
    two_digits(&mut text[2..4], year % 100);
    two_digits(&mut text[5..7], month + 1);
    two_digits(&mut text[8..10], day);
    two_digits(&mut text[11..13], second_of_day / 3600);
    two_digits(&mut text[14..16], second_of_day / 60 % 60);
    two_digits(&mut text[17..19], second_of_day % 60);
    let micros = unix_micros % 1_000_000;
    two_digits(&mut text[20..22], micros / 10_000);
    two_digits(&mut text[22..24], micros / 100 % 100);
    two_digits(&mut text[24..26], micros % 100);
    text
}

/// Year, month from 0 and day from 1.
const fn civil(days: u64) -> (u64, u64, u64) {
    // Civil date from days, counted in years that begin on 1 March so that the leap day comes last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = era * 400 + year_of_era + (month < 2) as u64;
    (year, month, day)
}

fn two_digits(target: &mut [u8], number: u64) {
    target[0] = b'0' + (number / 10) as u8;
    target[1] = b'0' + (number % 10) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expectations from `date -u -d @N '+%a, %d %b %Y %H:%M:%S GMT'`.
    #[test]
    fn formats() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (1_767_225_599, "Wed, 31 Dec 2025 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&imf_fixdate(seconds)), Ok(expected), "{seconds}");
        }
    }

    /// Expectations from `date -u -d @N +%FT%T`.
    #[test]
    fn formats_with_microseconds() {
        for (micros, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_123_456, "2000-02-29T00:00:00.123456Z"),
            (1_767_225_599_000_001, "2025-12-31T23:59:59.000001Z"),
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(std::str::from_utf8(&rfc3339_micros(micros)), Ok(expected), "{micros}");
        }
    }
}
