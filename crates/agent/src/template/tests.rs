use super::*;
use crate::spec::tests::{node, task};

#[track_caller]
fn check(text: &str, expected: std::result::Result<&str, &str>) {
    let (task, node) = (task(), node());
    let (secrets, configs) = (BTreeMap::new(), BTreeMap::new());
    let payload = Payload { secrets: &secrets, configs: &configs };
    let got = expand(text, &Context::of(&task, &node).with(payload));
    let expected = expected.map(str::to_owned).map_err(|why| format!("template: expansion: {why}"));
    assert_eq!(got, expected, "{text}");
}

#[test]
fn fields_are_replaced() {
    check("plain", Ok("plain"));
    check("{{.Node.Hostname}}-{{ .Task.Slot }}", Ok("node1-3"));
    check("{{.Service.Name}}", Ok("web"));
    check("{{.Task.Name}}", Ok("web.3.task1"));
    check("{{.Service.Labels.tier}}{{index .Service.Labels \"a.b\"}}", Ok("frontdots"));
    check("{{index .Service.Labels \"none\"}}", Ok(""));
}

#[test]
fn functions_pipelines_and_conditions_work_as_in_go() {
    check("{{join \"-\" \"a\" .Task.Slot \"b\"}}", Ok("a-3-b"));
    check("{{join \"-\"}}{{\"b\" | join \"-\" \"a\"}}", Ok("a-b"));
    check("{{join \"-\" 1}}", Err("wrong arguments for join"));
    check("{{ .Service.Name | printf \"%s:%q%%\" \"x\" }}", Ok("x:\"web\"%"));
    check("{{if eq .Service.Name \"db\" \"web\"}}yes{{else}}no{{end}}", Ok("yes"));
    check("{{if not (eq .Task.Slot \"3\")}}a{{else if .Service.Labels}}b{{else}}c{{end}}!", Ok("b!"));
    check("{{if false}}{{.Nope}}{{if true}}x{{end}}{{end}}.", Ok("."));
    check("a  {{- /* why */ -}}  b {{- \" c}}\" }}", Ok("ab c}}"));
    check("{{and true \"x\"}}{{or \"\" 7}}{{len .Service.Labels}}{{print `raw`}}", Ok("x72raw"));
}

#[test]
fn what_cannot_be_done_is_said() {
    check("{{.Nope}}", Err("can't evaluate field .Nope"));
    check("{{.Service.Labels.nope}}", Err("map has no entry for key \"nope\""));
    check("{{.Task.ID", Err("unclosed action"));
    check("{{if true}}x", Err("unclosed {{if}}"));
    check("{{range .Service.Labels}}{{end}}", Err("{{range}} is not supported"));
    check("{{nope 1}}", Err("function \"nope\" not defined"));
    check("{{secret \"pw\"}}", Err("secret target pw not found"));
    check("{{$x := 1}}", Err("\"$x\" is not supported"));
    check("{{(eq 1 1}}", Err("unclosed left paren"));
    check("{{\"a\" \"b\"}}", Err("can't give argument to non-function"));
    check("x{{end}}", Err("unexpected {{end}} or {{else}}"));
}
