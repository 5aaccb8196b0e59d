//! `[shadow]`: who wins where both sides have changed a value, and who may say what is wanted.

use std::sync::Arc;

use access::users::Role;
use device::shadow::{Policy, Rule, ShadowRules, shown};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ConfigError;

/// `[shadow]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowConfig {
    /// What counts for some values, `[[shadow.rules]]`; the first that covers a value counts.
    pub rules: Vec<ShadowRule>,
}

/// One of `[[shadow.rules]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowRule {
    /// Only in the shadow of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
    /// Which values: names with `.` between them; `*` stands for any name, at the end for all below.
    pub path: String,
    /// Who wins where both sides have changed: `server`, `device`, `lww`, `manual`, `max`, `min`, `union`.
    #[serde(default = "server")]
    pub policy: String,
    /// How far apart two numbers may be and still mean the same.
    #[serde(default)]
    pub deadband: f64,
    /// The least role that may say what is wanted: `engineer`, `operator` or `admin`.
    #[serde(default = "operator")]
    pub write: String,
}

fn server() -> String {
    Policy::Server.as_str().to_owned()
}

fn operator() -> String {
    Role::Operator.as_str().to_owned()
}

impl ShadowRule {
    fn rule(&self) -> Result<Rule, ConfigError> {
        let bad = |message| ConfigError::Value { key: "shadow.rules", message };
        let Some(policy) = Policy::from_name(&self.policy) else {
            let all = Policy::ALL.map(Policy::as_str).join(", ");
            return Err(bad(format!("{:?} is no policy; there are {all}", self.policy)));
        };
        let path: Vec<String> = self.path.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(bad(format!("{:?} is no path; one looks like \"heating.limit\" or \"heating.*\"", self.path)));
        }
        if !(self.deadband >= 0.0 && self.deadband.is_finite()) {
            return Err(bad(format!("the deadband of {} must be 0 or more", self.path)));
        }
        Ok(Rule { shadow: self.shadow.clone(), path, policy, deadband: self.deadband })
    }

    fn writer(&self) -> Result<Role, ConfigError> {
        let role = Role::from_name(&self.write).filter(|role| *role >= LEAST);
        role.ok_or_else(|| {
            let message =
                format!("{:?} of {} cannot be who writes; there are engineer, operator, admin", self.write, self.path);
            ConfigError::Value { key: "shadow.rules", message }
        })
    }
}

impl ShadowConfig {
    /// The rules as devices use them.
    pub fn rules(&self) -> Result<ShadowRules, ConfigError> {
        self.rules.iter().map(ShadowRule::rule).collect::<Result<_, _>>().map(ShadowRules)
    }

    /// Who may say what is wanted.
    pub fn writers(&self) -> Result<Writers, ConfigError> {
        self.rules.iter().map(|rule| Ok((rule.rule()?, rule.writer()?))).collect::<Result<_, _>>().map(Writers)
    }
}

/// The least role that any rule may let write.
const LEAST: Role = Role::Engineer;

/// Who may say what is wanted, by path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Writers(Vec<(Rule, Role)>);

impl Writers {
    /// A path that a merge patch (RFC 7396) of a shadow changes and that this role may not, with the role that may; `patch`
    /// `None`: the whole shadow is deleted.
    pub fn refuse(&self, shadow: &str, patch: Option<&Map<String, Value>>, role: Role) -> Option<(String, Role)> {
        match patch {
            Some(patch) => self.below(shadow, &mut Vec::new(), patch, role),
            None => self.at(shadow, &[], role),
        }
    }

    fn below(
        &self,
        shadow: &str,
        path: &mut Vec<Arc<str>>,
        patch: &Map<String, Value>,
        role: Role,
    ) -> Option<(String, Role)> {
        for (name, value) in patch {
            path.push(name.as_str().into());
            let refused = match value {
                Value::Object(inner) if !inner.is_empty() => self.below(shadow, path, inner, role),
                _ => self.at(shadow, path, role),
            };
            path.pop();
            if refused.is_some() {
                return refused;
            }
        }
        None
    }

    /// Whatever stands at a path, and below it, is replaced.
    fn at(&self, shadow: &str, path: &[Arc<str>], role: Role) -> Option<(String, Role)> {
        let own =
            self.0.iter().find(|(rule, _)| rule.covers(shadow, path)).map_or(Role::Operator, |(_, writer)| *writer);
        if role < own {
            return Some((shown(path), own));
        }
        let below = self.0.iter().find(|(rule, writer)| role < *writer && rule.reaches_below(shadow, path));
        below.map(|(rule, writer)| (rule.path.join("."), *writer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers(text: &str) -> Result<Writers, String> {
        toml::from_str::<ShadowConfig>(text).unwrap().writers().map_err(|error| error.to_string())
    }

    #[test]
    fn a_role_changes_its_own_paths_and_nothing_beside() {
        let writers = writers(
            "[[rules]]\npath = \"safety.*\"\nwrite = \"admin\"\n\
             [[rules]]\nshadow = \"app\"\npath = \"interval\"\nwrite = \"engineer\"\n\
             [[rules]]\npath = \"a.*.z\"\nwrite = \"admin\"\n",
        )
        .unwrap();
        let refused = |shadow: &str, patch: Value, role| {
            writers
                .refuse(shadow, patch.as_object(), role)
                .map_or(String::new(), |(path, role)| format!("{path} {role}"))
        };
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        for (shadow, patch, role, expected) in [
            ("x", r#"{"heating": {"on": true}}"#, Role::Operator, ""),
            ("x", r#"{"heating": {"on": true}}"#, Role::Engineer, "heating.on operator"),
            ("x", r#"{"safety": {"limit": 1}}"#, Role::Operator, "safety.limit admin"),
            ("x", r#"{"safety": {"limit": {"low": null}}}"#, Role::Operator, "safety.limit.low admin"),
            ("x", r#"{"safety": {"limit": 1}}"#, Role::Admin, ""),
            ("x", r#"{"ok": 1, "safety": null}"#, Role::Operator, "safety.* admin"),
            ("x", r#"{"safety": {}}"#, Role::Operator, "safety.* admin"),
            ("x", r#"{"safetyx": 1}"#, Role::Operator, ""),
            ("app", r#"{"interval": 5}"#, Role::Engineer, ""),
            ("x", r#"{"interval": 5}"#, Role::Engineer, "interval operator"),
            ("x", r#"{"a": {"b": {"z": 1}}}"#, Role::Operator, "a.b.z admin"),
            ("x", r#"{"a": {"b": {"y": 1}}}"#, Role::Operator, ""),
            ("x", r#"{"a": {"b": 1}}"#, Role::Operator, "a.*.z admin"),
            ("x", r#"{"a": 1}"#, Role::Operator, "a.*.z admin"),
            ("x", "{}", Role::Engineer, ""),
        ] {
            assert_eq!(refused(shadow, json(patch), role), expected, "{shadow} {patch} {role}");
        }
        assert_eq!(writers.refuse("x", None, Role::Operator).unwrap().1, Role::Admin);
        assert_eq!(writers.refuse("x", None, Role::Admin), None);
        assert_eq!(Writers::default().refuse("x", None, Role::Operator), None);
    }

    #[test]
    fn who_cannot_write_is_refused_by_name() {
        for role in ["viewer", "analyst", "boss", ""] {
            let error = writers(&format!("[[rules]]\npath = \"a\"\nwrite = {role:?}\n")).unwrap_err();
            assert!(error.starts_with("shadow.rules") && error.contains("engineer, operator, admin"), "{error}");
        }
    }
}
