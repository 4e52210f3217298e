package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

var uuid4 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// matcher compares an answer with what a case expects and gathers what differs.
type matcher struct {
	world    *world
	partial  bool // fields that the expectation does not name may be there
	problems []string
}

func (m *matcher) fail(path, format string, args ...any) {
	m.problems = append(m.problems, strings.TrimPrefix(path, ".")+": "+fmt.Sprintf(format, args...))
}

func show(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	if len(text) > 160 {
		return fmt.Sprintf("%s… (%d characters)", text[:160], len(text))
	}
	return string(text)
}

func (m *matcher) match(path string, want, got any) {
	switch w := want.(type) {
	case string:
		m.text(path, w, got)
	case map[string]any:
		if list, ok := got.([]any); ok {
			m.quantified(path, w, list)
			return
		}
		table, ok := got.(map[string]any)
		if !ok {
			m.fail(path, "want %s, got %s", show(want), show(got))
			return
		}
		m.table(path, w, table)
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(w) {
			m.fail(path, "want %d items, got %s", len(w), show(got))
			return
		}
		for i := range w {
			m.match(fmt.Sprintf("%s[%d]", path, i), w[i], list[i])
		}
	default:
		if show(want) != show(got) {
			m.fail(path, "want %s, got %s", show(want), show(got))
		}
	}
}

func (m *matcher) table(path string, want, got map[string]any) {
	for _, key := range sortedKeys(want) {
		at := path + "." + key
		value, there := got[key]
		switch {
		case want[key] == "?":
		case want[key] == nil && there:
			m.fail(at, "must be absent, got %s", show(value))
		case want[key] == nil:
		case !there:
			m.fail(at, "absent, want %s", show(want[key]))
		case key == "status":
			m.status(at, want[key], value)
		default:
			m.match(at, want[key], value)
		}
	}
	if m.partial {
		return
	}
	for _, key := range sortedKeys(got) {
		if _, known := want[key]; !known {
			m.fail(path+"."+key, "must be absent, got %s", show(got[key]))
		}
	}
}

// status compares the per-item status of a batch with the name of a code. OK carries the message OK, others any.
func (m *matcher) status(path string, want, got any) {
	name, named := want.(string)
	table, isTable := got.(map[string]any)
	if !named || !isTable {
		m.match(path, want, got)
		return
	}
	number := codes.OK
	if given, ok := table["code"].(json.Number); ok {
		value, _ := given.Int64()
		number = codes.Code(value)
	}
	if number.String() != name {
		m.fail(path, "want %s, got %s %s", name, number, show(table["message"]))
	} else if message, _ := table["message"].(string); message == "" || (name == "OK" && message != "OK") {
		m.fail(path, "unexpected message %q of %s", message, name)
	}
}

// quantified compares a list with {"@len": 3, "@first": [...], "@each": ..., "@set": [...], "@sorted": field}.
func (m *matcher) quantified(path string, want map[string]any, got []any) {
	for _, key := range sortedKeys(want) {
		switch key {
		case "@len":
			if show(want[key]) != strconv.Itoa(len(got)) {
				m.fail(path, "want %s items, got %d", show(want[key]), len(got))
			}
		case "@first":
			first, _ := want[key].([]any)
			m.match(path, first, got[:min(len(first), len(got))])
		case "@each":
			for i, item := range got {
				m.match(fmt.Sprintf("%s[%d]", path, i), want[key], item)
			}
		case "@set":
			m.set(path, want[key], got)
		case "@sorted":
			name, _ := want[key].(string)
			if !slices.IsSortedFunc(got, func(a, b any) int { return strings.Compare(field(a, name), field(b, name)) }) {
				m.fail(path, "not sorted by %s", name)
			}
		default:
			m.fail(path, "an object is expected, got a list of %d", len(got))
		}
	}
}

func field(item any, name string) string {
	table, _ := item.(map[string]any)
	text, _ := table[name].(string)
	return text
}

// set compares without order: each wanted item takes the first item that matches it.
func (m *matcher) set(path string, want any, got []any) {
	items, _ := want.([]any)
	left := slices.Clone(got)
	for _, item := range items {
		found := slices.IndexFunc(left, func(candidate any) bool {
			trial := &matcher{world: m.world, partial: m.partial}
			trial.match("", item, candidate)
			return len(trial.problems) == 0
		})
		if found < 0 {
			m.fail(path, "nothing in it is %s", show(item))
			continue
		}
		left = slices.Delete(left, found, found+1)
	}
	if len(left) > 0 {
		m.fail(path, "%d more than wanted, such as %s", len(left), show(left[0]))
	}
}

func (m *matcher) text(path, want string, got any) {
	if want == "*" {
		return
	}
	if !strings.HasPrefix(want, "@") {
		if got != want {
			m.fail(path, "want %q, got %s", want, show(got))
		}
		return
	}
	name, rest, _ := strings.Cut(want[1:], " ")
	text, _ := got.(string)
	switch name {
	case "keep":
		into, further, _ := strings.Cut(rest, " ")
		m.world.vars[into] = text
		if further != "" {
			m.match(path, further, got)
		}
	case "uuid":
		if !uuid4.MatchString(text) {
			m.fail(path, "want a random UUID, got %s", show(got))
		}
	case "re":
		if matched, err := regexp.MatchString("^(?:"+rest+")$", text); err != nil || !matched {
			m.fail(path, "want %s, got %s", rest, show(got))
		}
	case "in":
		m.time(path, rest, text)
	case "not":
		if text == rest {
			m.fail(path, "must not be %q", rest)
		}
	case "chain":
		m.chain(path, rest, got)
	case "cert":
		m.chain(path, rest+" n=1", []any{got})
	case "jwt":
		m.jwt(path, rest, text)
	default:
		m.fail(path, "no matcher is called %q", name)
	}
}

// time reads `SECONDS` from now, half a minute around it, or `LOW HIGH`.
func (m *matcher) time(path, rest, got string) {
	value, err := strconv.ParseInt(got, 10, 64)
	if err != nil {
		m.fail(path, "want a time, got %q", got)
		return
	}
	var bounds []int64
	for _, word := range strings.Fields(rest) {
		seconds, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			m.fail(path, "%v", err)
			return
		}
		bounds = append(bounds, seconds)
	}
	low, high := bounds[0]-30, bounds[len(bounds)-1]+30
	if from := value - time.Now().Unix(); from < low || from > high {
		m.fail(path, "want %s seconds from now, got %d", rest, from)
	}
}

// chain reads `PATH [n=LENGTH] [dns=a,b] [ca] [keep=IDENTITY,KEY] [alg=..]` and verifies the chain against the bundle.
func (m *matcher) chain(path, rest string, got any) {
	list, ok := got.([]any)
	if !ok {
		m.fail(path, "want a chain, got %s", show(got))
		return
	}
	var ders [][]byte
	for _, item := range list {
		text, _ := item.(string)
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			m.fail(path, "%v", err)
			return
		}
		ders = append(ders, der)
	}
	leaf, err := m.world.verifyChain(ders)
	if err != nil {
		m.fail(path, "the chain does not verify: %v", err)
		return
	}
	words := strings.Fields(rest)
	wantURI, wantDNS, wantCA, wantLength := "spiffe://"+m.world.target.TrustDomain, "", false, "1"
	for _, word := range words {
		what, value, _ := strings.Cut(word, "=")
		switch {
		case strings.HasPrefix(word, "/"):
			wantURI += word
		case what == "n":
			wantLength = value
		case what == "dns":
			wantDNS = value
		case what == "ca":
			wantCA = true
		case what == "keep":
			name, key, _ := strings.Cut(value, ",")
			if err := m.world.keep(name, key, ders); err != nil {
				m.fail(path, "%v", err)
			}
		}
	}
	if strconv.Itoa(len(ders)) != wantLength {
		m.fail(path, "want %s certificates, got %d", wantLength, len(ders))
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != wantURI {
		m.fail(path, "want %s in the certificate, got %v", wantURI, leaf.URIs)
	}
	if names := strings.Join(leaf.DNSNames, ","); names != wantDNS {
		m.fail(path, "want the DNS names %q, got %q", wantDNS, names)
	}
	if leaf.IsCA != wantCA {
		m.fail(path, "want a CA: %v, got %v", wantCA, leaf.IsCA)
	}
}

func sortedKeys(table map[string]any) []string {
	keys := make([]string, 0, len(table))
	for key := range table {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}
