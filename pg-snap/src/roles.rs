//! The roles that a restore needs: those that are missing are made, and one is found that everything becomes.

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::status::Report;

use crate::admin::Admin;
use crate::facts::{Facts, Role};
use crate::loader;
use crate::login::Login;
use crate::manifest::Manifest;
use crate::password::Password;
use crate::pg_restore::Contents;
use crate::psql::{identifier, literal};
use crate::standing::Standing;

/// Makes the roles that are missing, ordinary ones, and what they are members of; whether there were any.
pub(crate) fn make(
    admin: &Admin,
    facts: &Facts,
    standing: &Standing,
    login: Option<&Login>,
    database: &str,
    report: &mut Report,
) -> Result<bool> {
    let mut bare = Vec::new();
    for name in &standing.missing_roles {
        let ordinary = Role { name: name.clone(), inherit: true, connection_limit: -1, ..Role::default() };
        let role = facts.role(name).unwrap_or(&ordinary);
        let password = login.and_then(|l| l.password_of(name)).map(Password::reveal);
        let password = password.filter(|_| !mutant::active("roles-without-the-password"));
        if password.is_none() && role.password.is_none() && role.login {
            bare.push(name.as_str());
        }
        let mut statements = loader::quiet(standing.me.superuser);
        statements.push(role.create(password));
        admin.run(&statements).with_context(|| format!("cannot make the role {name}"))?;
        common::say!("pg-snap", "made the role {name}");
    }
    if !bare.is_empty() {
        let names = bare.join(", ");
        report.warn("no-password", format!("made without a password, as none is known: {names}"));
    }
    join(admin, facts, &standing.missing_roles, database, report);
    Ok(!standing.missing_roles.is_empty())
}

/// What the roles `made` are members of, and what are members of them. Nobody becomes a member of one that may do more
/// than others.
fn join(admin: &Admin, facts: &Facts, made: &[String], database: &str, report: &mut Report) {
    for membership in &facts.memberships {
        if !made.contains(&membership.role) && !made.contains(&membership.member) {
            continue;
        }
        let harmless = loader::known(admin, &[&membership.role]);
        let harmless = harmless.is_ok_and(|k| k.iter().all(|(_, harmless)| *harmless) && !k.is_empty());
        let harmless = harmless
            && (made.contains(&membership.role)
                || has_nothing_else(admin, &membership.role, database).unwrap_or(false));
        let joined = match harmless || mutant::active("members-of-anything") {
            true => admin.run(&[membership.grant()]).map(|_| ()),
            false => Err(anyhow::anyhow!(
                "that role may do more than others here, or has other databases, or is not there"
            )),
        };
        if let Err(e) = joined {
            report.warn("membership-left-out", format!("{} was left out: {e:#}", membership.grant()));
        }
    }
}

/// Whether a role that was here before owns nothing, and may do nothing, but in `database`: what is another program's is not
/// given to a role because a dump says so.
fn has_nothing_else(admin: &Admin, role: &str, database: &str) -> Result<bool> {
    if mutant::active("members-of-another-program") {
        return Ok(true);
    }
    admin.query(&format!(
        "SELECT to_json(NOT EXISTS (SELECT FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
               LEFT JOIN pg_database d ON d.datname = {}
             WHERE r.rolname = {} AND s.refclassid = 'pg_authid'::regclass AND s.deptype IN ('o', 'a')
               AND s.dbid IS DISTINCT FROM d.oid
               AND NOT (s.classid = 'pg_database'::regclass AND s.objid IS NOT DISTINCT FROM d.oid)))",
        literal(database),
        literal(role)
    ))
}

/// Whose everything becomes: whose most tables are, which is what Nextcloud connects as, while the database can be an
/// administrator's. Where a made role loads, that is nobody who may do more than others, unless the profile `named` that
/// role: what a dump brings would run with those rights later (SECURITY DEFINER, or an index that is analyzed).
pub(crate) fn principal<'d>(
    admin: &Admin,
    facts: &'d Facts,
    contents: &Contents,
    manifest: &'d Manifest,
    standing: &Standing,
    login: Option<&'d Login>,
    named: Option<&str>,
) -> Result<&'d str> {
    let owner = manifest.definition.owner.as_str();
    let owners = contents.owners(facts.roles.iter().map(|r| r.name.as_str()));
    let first = owners.first().filter(|(_, tables)| *tables > 0).map_or(owner, |(role, _)| role);
    if standing.me.harmless || mutant::active("an-administrator-inherits") {
        return Ok(first);
    }
    let login = login.and_then(|l| l.server.user.as_deref());
    let others = owners.iter().map(|(role, _)| *role).chain([owner]);
    for role in [first].into_iter().chain(login).chain(others) {
        // One that is missing is made an ordinary one.
        let made = standing.missing_roles.iter().any(|m| m == role);
        let known = loader::known(admin, &[role])?;
        if made || named == Some(role) || known.iter().any(|(_, harmless)| *harmless) {
            return Ok(role);
        }
    }
    Err(Fault::denied(format!(
        "what is in the dump would belong to {first}, which may do more than others on this server, and so run with these rights"
    ))
    .hint(format!(
        "name the role that Nextcloud connects as: user in [database]; if that is {first}, better ALTER ROLE {} \
         NOSUPERUSER NOCREATEROLE before",
        identifier(first)
    ))
    .into())
}
