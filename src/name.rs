//! Names people choose: users, groups, files. All of them are labels.
//!
//! Parsing is validation: a name that exists is safe to print, to compare and (a file name) to
//! join to a directory.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization as _, is_nfc};

use crate::limits::{MAX_FILE_NAME_LEN, MAX_NAME_LEN};
use crate::manifest::ContentId;

/// Hex digits after the `~` of a name two had chosen.
const NAME_MARK_LEN: usize = 4;

/// Text that cannot be a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty, too long, or a character outside the alphabet of user and group names.
    #[error("a name is 1 to {MAX_NAME_LEN} of a-z 0-9 . _ -")]
    Alphabet,
    /// No characters.
    #[error("a file name cannot be empty")]
    Empty,
    /// Too many bytes.
    #[error("a file name of {0} bytes is over the limit of {MAX_FILE_NAME_LEN}")]
    TooLong(usize),
    /// A separator: the name would leave its directory.
    #[error("a file name cannot contain / or \\")]
    Separator,
    /// A character that controls a terminal or reorders text.
    #[error("a file name cannot contain control characters")]
    Control,
    /// `.`, `..`, something beginning with `..`, or a device name.
    #[error("this file name is reserved")]
    Reserved,
    /// Not in Unicode normalization form C.
    #[error("a file name must be in Unicode normalization form C")]
    NotNormal,
    /// The file system's name is not Unicode.
    #[error("the name of the file is not valid Unicode")]
    NotUnicode,
}

/// Declares a lower-case account-like name.
macro_rules! account_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name, in lower case.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// What was chosen, and the mark the system added when two had chosen the same.
            pub fn parts(&self) -> (Self, Option<&str>) {
                match self.0.split_once('~') {
                    Some((chosen, mark)) => (Self(chosen.to_owned()), Some(mark)),
                    None => (self.clone(), None),
                }
            }

            /// This name with the mark of whom or what has `id`.
            pub fn marked(&self, id: &[u8; 16]) -> Self {
                Self(format!("{}~{}", self.0, hex::encode(&id[..NAME_MARK_LEN / 2])))
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            /// Accepts any case and folds it.
            fn from_str(text: &str) -> Result<Self, NameError> {
                let lower = text.to_ascii_lowercase();
                let (chosen, mark) = match lower.split_once('~') {
                    Some((chosen, mark)) => (chosen, Some(mark)),
                    None => (lower.as_str(), None),
                };
                let known = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
                let fits = (1..=MAX_NAME_LEN).contains(&chosen.len());
                let digits = |mark: &str| {
                    mark.len() == NAME_MARK_LEN && mark.bytes().all(|b| b.is_ascii_hexdigit())
                };
                if !fits || !chosen.bytes().all(known) || !mark.is_none_or(digits) {
                    return Err(NameError::Alphabet);
                }
                Ok(Self(lower))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

account_name! {
    /// Name of an account: 1-32 of `a-z 0-9 . _ -`, compared in lower case. `~` and four hex digits
    /// follow where two chose the same; nobody chooses that.
    UserName
}

account_name! {
    /// Name of a group, of the same form.
    GroupName
}

/// Name of a file: a label, never a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    /// The label a file gets from its own path: the last component, in form C.
    ///
    /// # Errors
    /// [`NameError`] when that component cannot be a label.
    pub fn from_path(path: &Path) -> Result<Self, NameError> {
        let name = path.file_name().ok_or(NameError::Empty)?;
        Self::normalized(name.to_str().ok_or(NameError::NotUnicode)?)
    }

    /// What a person typed, brought to form C.
    ///
    /// # Errors
    /// [`NameError`] when it cannot be a label.
    pub fn normalized(text: &str) -> Result<Self, NameError> {
        text.nfc().collect::<String>().parse()
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This name with ` (number)` before its extension, for a name already taken.
    pub fn numbered(&self, number: u32) -> String {
        match self.0.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() => format!("{stem} ({number}).{extension}"),
            _ => format!("{} ({number})", self.0),
        }
    }
}

impl FromStr for FileName {
    type Err = NameError;

    /// Accepts only text that is already exactly a name.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_FILE_NAME_LEN {
            return Err(NameError::TooLong(text.len()));
        }
        if text.contains(['/', '\\']) {
            return Err(NameError::Separator);
        }
        if text.chars().any(is_unprintable) {
            return Err(NameError::Control);
        }
        if text == "." || text.starts_with("..") || text == ".mtq" || is_device(text) {
            return Err(NameError::Reserved);
        }
        if !is_nfc(text) {
            return Err(NameError::NotNormal);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for FileName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Controls, line and paragraph separators, and the characters that turn text around.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Names that open a device on some systems a file may travel to.
fn is_device(text: &str) -> bool {
    let stem = text.split('.').next().unwrap_or(text).to_ascii_uppercase();
    match stem.as_str() {
        "CON" | "PRN" | "AUX" | "NUL" => true,
        _ => stem
            .strip_prefix("COM")
            .or_else(|| stem.strip_prefix("LPT"))
            .is_some_and(|n| n.len() == 1 && n != "0" && n.bytes().all(|b| b.is_ascii_digit())),
    }
}

/// Digits of a content id that listings show; fewer select nothing.
const MIN_ID_DIGITS: usize = 8;

/// The beginning of a content id, or all of it, in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdPrefix(String);

impl IdPrefix {
    /// The least content id that begins so.
    pub fn least(&self) -> ContentId {
        let mut bytes = [0; ContentId::LEN];
        for (index, value) in self.digits().enumerate() {
            bytes[index / 2] |= if index % 2 == 0 { value << 4 } else { value };
        }
        ContentId(bytes)
    }

    /// Whether `content` begins so. Of thousands nearly all are told apart by the first digit.
    pub fn matches(&self, content: ContentId) -> bool {
        let digit = |index: usize| {
            let byte = content.0[index / 2];
            if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
        };
        self.digits().enumerate().all(|(index, value)| digit(index) == value)
    }

    fn digits(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().map(|digit| (digit as char).to_digit(16).unwrap_or(0) as u8)
    }
}

impl From<ContentId> for IdPrefix {
    fn from(content: ContentId) -> Self {
        Self(content.to_string())
    }
}

impl TryFrom<String> for IdPrefix {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits && (MIN_ID_DIGITS..=2 * ContentId::LEN).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err(SelectorError::Id)
        }
    }
}

impl From<IdPrefix> for String {
    fn from(prefix: IdPrefix) -> Self {
        prefix.0
    }
}

/// How a file of a group is named in a command: `NAME`, `USER/NAME` or `id:HEX`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// Any file listed under this name.
    Name(FileName),
    /// The file this user lists under this name.
    UserName(UserName, FileName),
    /// The file whose content id begins so.
    Id(IdPrefix),
}

/// Text that selects no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// Bad hex after `id:`.
    #[error("after id: come {MIN_ID_DIGITS} to 64 hex digits of a content id")]
    Id,
    /// A bad user or file name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if let Some(id) = text.strip_prefix("id:") {
            return Ok(Self::Id(IdPrefix::try_from(id.to_owned())?));
        }
        match text.split_once('/') {
            Some((user, name)) => Ok(Self::UserName(user.parse()?, FileName::normalized(name)?)),
            None => Ok(Self::Name(FileName::normalized(text)?)),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::UserName(user, name) => write!(f, "{user}/{name}"),
            Self::Id(id) => write!(f, "id:{}", id.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;
    use proptest::prelude::*;

    #[test]
    fn account_names_fold_case_and_keep_to_the_alphabet() {
        assert_eq!("Alice.B-2_x".parse::<UserName>().expect("valid").as_str(), "alice.b-2_x");
        let long = "a".repeat(33);
        for bad in ["", "a b", "a/b", "a~1", "~1a2b", "a~xyzw", "a~1a2b~1a2b", "é", "a\n", &long] {
            assert_eq!(bad.parse::<GroupName>(), Err(NameError::Alphabet), "{bad:?}");
        }
        round_trip(&"lab".parse::<GroupName>().expect("valid"));
        let lab: GroupName = "lab".parse().expect("valid");
        let marked = lab.marked(&[0x1a; 16]);
        assert_eq!(marked.as_str(), "lab~1a1a");
        assert_eq!(marked.parts(), (lab.clone(), Some("1a1a")));
        assert_eq!("LAB~1A1A".parse::<GroupName>(), Ok(marked));
        assert_eq!(lab.parts(), (lab.clone(), None));
    }

    #[test]
    fn hostile_file_names_are_refused() {
        for (bad, error) in [
            ("", NameError::Empty),
            ("../x", NameError::Separator),
            ("/etc/x", NameError::Separator),
            ("a\\b", NameError::Separator),
            ("..", NameError::Reserved),
            ("..x", NameError::Reserved),
            (".", NameError::Reserved),
            (".mtq", NameError::Reserved),
            ("con", NameError::Reserved),
            ("LPT1.txt", NameError::Reserved),
            ("a\x1b[31m", NameError::Control),
            ("a\nb", NameError::Control),
            ("a\0b", NameError::Control),
            ("a\u{202e}gpj.exe", NameError::Control),
            ("e\u{301}", NameError::NotNormal),
        ] {
            assert_eq!(bad.parse::<FileName>(), Err(error), "{bad:?}");
        }
        let long = "é".repeat(121);
        assert_eq!(long.parse::<FileName>(), Err(NameError::TooLong(242)));
    }

    #[test]
    fn honest_file_names_are_kept_as_they_are() {
        for good in ["a", "-rf", "with space.iso", "日本語.tar.gz", ".hidden", "com10", "a'b\"c"]
        {
            let name = good.parse::<FileName>().expect(good);
            assert_eq!(name.as_str(), good);
            round_trip(&name);
        }
        assert_eq!(FileName::normalized("e\u{301}").expect("valid").as_str(), "é");
        let path = Path::new("/data/a b.iso");
        assert_eq!(FileName::from_path(path).expect("valid").as_str(), "a b.iso");
        assert!(FileName::from_path(Path::new("/data/..")).is_err());
    }

    #[test]
    fn numbered_goes_before_the_extension() {
        for (name, expected) in [
            ("a.iso", "a (2).iso"),
            ("a", "a (2)"),
            (".rc", ".rc (2)"),
            ("a.tar.gz", "a.tar (2).gz"),
        ] {
            assert_eq!(name.parse::<FileName>().expect("valid").numbered(2), expected);
        }
    }

    #[test]
    fn selectors() {
        let id = "id:".to_owned() + &"ab".repeat(32);
        for text in ["a b.iso", "bob/a.iso", &id, "id:abababab"] {
            let selector: Selector = text.parse().expect(text);
            assert_eq!(selector.to_string(), text);
            round_trip(&selector);
        }
        let prefix = IdPrefix::try_from("abababab".to_owned()).expect("valid");
        assert_eq!(prefix.least().to_string(), format!("{:0<64}", "abababab"));
        let odd = IdPrefix::try_from("ababababc".to_owned()).expect("valid");
        assert_eq!(odd.least().to_string(), format!("{:0<64}", "ababababc"));
        assert!(prefix.matches(ContentId([0xab; 32])) && !prefix.matches(ContentId([0xac; 32])));
        for bad in ["id:xyz", "id:abc", "id:ABABABAB", "bob/..", "B OB/x", "a/b/c", ""] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_file_name_is_always_one_safe_component(text in "\\PC{0,20}|[./\\\\a-z\\x00-\\x1f]{0,12}") {
            if let Ok(name) = FileName::normalized(&text) {
                let joined = Path::new("/dest").join(name.as_str());
                prop_assert_eq!(joined.parent(), Some(Path::new("/dest")));
                prop_assert!(!name.as_str().chars().any(char::is_control));
            }
        }
    }
}
