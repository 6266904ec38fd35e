//! Who a process runs as: `user[:group]` of the image or the request, looked up in the container's own files
//! (moby `user.GetExecUser`).

use crate::error::{EngineError, Result};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvedUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary group, the user's groups in /etc/group, and those asked for.
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) home: String,
}

/// `passwd` and `group` are the contents of the container's files, empty where there is none.
pub(crate) fn resolve(user: &str, extra_groups: &[String], passwd: &str, group: &str) -> Result<ResolvedUser> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group_name)) => (name, group_name),
        None => (user, ""),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = passwd.lines().filter_map(parse_passwd).find(|e| e.name == name || e.uid.to_string() == name);
    let mut resolved = ResolvedUser { home: "/".to_owned(), ..ResolvedUser::default() };
    match (&entry, name.parse::<u32>()) {
        (Some(entry), _) => {
            resolved.uid = entry.uid;
            resolved.gid = entry.gid;
            if !entry.home.is_empty() {
                entry.home.clone_into(&mut resolved.home);
            }
        }
        (None, Ok(uid)) => {
            resolved.uid = uid;
            if uid == 0 {
                "/root".clone_into(&mut resolved.home);
            }
        }
        (None, Err(_)) => return Err(unknown("user", name)),
    }
    if !group_name.is_empty() {
        resolved.gid = find_group(group_name, group)?;
    } else if let Some(entry) = &entry {
        for candidate in group.lines().filter_map(parse_group) {
            if candidate.members.split(',').any(|m| m == entry.name) {
                resolved.additional_gids.push(candidate.gid);
            }
        }
    }
    for extra in extra_groups {
        resolved.additional_gids.push(find_group(extra, group)?);
    }
    // The primary group among them, or a process could drop a group that denies it something (CVE-2022-36109).
    let mut gids = vec![resolved.gid];
    for gid in resolved.additional_gids {
        if !gids.contains(&gid) {
            gids.push(gid);
        }
    }
    resolved.additional_gids = gids;
    Ok(resolved)
}

fn unknown(kind: &str, name: &str) -> EngineError {
    EngineError::Invalid(format!(
        "unable to find {kind} {name}: no matching entries in {} file",
        if kind == "user" { "passwd" } else { "group" }
    ))
}

fn find_group(name: &str, group: &str) -> Result<u32> {
    let found = group.lines().filter_map(parse_group).find(|g| g.name == name || g.gid.to_string() == name);
    match (found, name.parse()) {
        (Some(found), _) => Ok(found.gid),
        (None, Ok(gid)) => Ok(gid),
        (None, Err(_)) => Err(unknown("group", name)),
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn parse_passwd(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or("") })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn parse_group(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbee:x:1000:1001:Bee:/home/bee:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nbees:x:1001:\nhive:x:1002:root,bee\nwax:x:7:\n";

    fn check(user: &str, uid: u32, gid: u32, gids: &[u32], home: &str) {
        let got = resolve(user, &[], PASSWD, GROUP).unwrap();
        assert_eq!(
            (got.uid, got.gid, got.additional_gids.as_slice(), got.home.as_str()),
            (uid, gid, gids, home),
            "{user}"
        );
    }

    #[test]
    fn names_numbers_and_groups_are_found() {
        check("", 0, 0, &[0, 1002], "/root");
        check("bee", 1000, 1001, &[1001, 1002], "/home/bee");
        check("1000", 1000, 1001, &[1001, 1002], "/home/bee");
        check("bee:wax", 1000, 7, &[7], "/home/bee");
        check("4242", 4242, 0, &[0], "/");
        check("4242:4343", 4242, 4343, &[4343], "/");
        let extra = resolve("bee", &["wax".into(), "99".into()], PASSWD, GROUP).unwrap();
        assert_eq!(extra.additional_gids, [1001, 1002, 7, 99]);
        assert_eq!(resolve("", &[], "", "").unwrap().home, "/root");
        let error = resolve("wasp", &[], PASSWD, GROUP).unwrap_err().to_string();
        assert_eq!(error, "unable to find user wasp: no matching entries in passwd file");
    }
}
