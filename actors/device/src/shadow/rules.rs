//! Who wins where the engine's side and the device have both changed a value, as the configuration says.

use std::sync::Arc;

/// Who wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// What is desired.
    #[default]
    Server,
    /// What the device reports: what is desired follows it.
    Device,
    /// The later change; what is desired where that cannot be told.
    Later,
    /// Nobody: the conflict stays open until one side gives way.
    Manual,
    /// The larger number.
    Max,
    /// The smaller number.
    Min,
    /// An array with the values of both.
    Union,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 7] =
        [Self::Server, Self::Device, Self::Later, Self::Manual, Self::Max, Self::Min, Self::Union];

    /// Its name in the configuration and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Device => "device",
            Self::Later => "lww",
            Self::Manual => "manual",
            Self::Max => "max",
            Self::Min => "min",
            Self::Union => "union",
        }
    }

    /// The policy of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name)
    }
}

/// What counts for some paths.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Of this shadow; `None`: of every one.
    pub shadow: Option<String>,
    /// Names from the root; `*` stands for any name, at the end for whatever lies below.
    pub path: Vec<String>,
    /// Who wins.
    pub policy: Policy,
    /// How far apart two numbers may be and still mean the same.
    pub deadband: f64,
}

impl Rule {
    /// Whether it counts for a path.
    pub fn covers(&self, shadow: &str, path: &[Arc<str>]) -> bool {
        let open = self.path.last().is_some_and(|last| last == "*");
        let fits = if open { path.len() >= self.path.len() } else { path.len() == self.path.len() };
        fits && self.is_along(shadow, path)
    }

    /// Whether it counts for a path that lies below another.
    pub fn reaches_below(&self, shadow: &str, path: &[Arc<str>]) -> bool {
        path.len() < self.path.len() && self.is_along(shadow, path)
    }

    /// Whether the names are the same as far as both go.
    fn is_along(&self, shadow: &str, path: &[Arc<str>]) -> bool {
        self.shadow.as_deref().is_none_or(|name| name == shadow)
            && self.path.iter().zip(path).all(|(wanted, name)| wanted == "*" || *wanted == **name)
    }
}

/// What counts for which paths; the first rule that covers a path counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ShadowRules(pub Vec<Rule>);

impl ShadowRules {
    /// Who wins at a path.
    pub fn policy(&self, shadow: &str, path: &[Arc<str>]) -> Policy {
        self.find(shadow, path).map_or(Policy::default(), |rule| rule.policy)
    }

    /// How far apart numbers at a path may be.
    pub fn deadband(&self, shadow: &str, path: &[Arc<str>]) -> f64 {
        self.find(shadow, path).map_or(0.0, |rule| rule.deadband)
    }

    fn find(&self, shadow: &str, path: &[Arc<str>]) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.covers(shadow, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_covers_a_path_counts() {
        let rule = |shadow: Option<&str>, path: &str, policy| Rule {
            shadow: shadow.map(str::to_owned),
            path: path.split('.').map(str::to_owned).collect(),
            policy,
            deadband: 0.0,
        };
        let rules = ShadowRules(vec![
            rule(Some("net"), "*", Policy::Max),
            rule(None, "heating.knob", Policy::Device),
            rule(None, "heating.*", Policy::Later),
            rule(None, "*.limit", Policy::Min),
        ]);
        for (shadow, path, expected) in [
            ("net", "heating.knob", Policy::Max),
            ("main", "heating.knob", Policy::Device),
            ("main", "heating.zone.a", Policy::Later),
            ("main", "heating", Policy::Server),
            ("main", "fan.limit", Policy::Min),
            ("main", "fan.limit.x", Policy::Server),
        ] {
            let path: Vec<Arc<str>> = path.split('.').map(Arc::from).collect();
            assert_eq!(rules.policy(shadow, &path), expected, "{shadow} {path:?}");
        }
        for policy in Policy::ALL {
            assert_eq!(Policy::from_name(policy.as_str()), Some(policy));
        }
    }
}
