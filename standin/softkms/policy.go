package softkms

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// policy is a key policy, of which this package understands all or nothing.
type policy struct {
	Version   string      `json:"Version"`
	ID        string      `json:"Id"`
	Statement []statement `json:"Statement"`
}

type statement struct {
	Sid       string                `json:"Sid"`
	Effect    string                `json:"Effect"`
	Principal principals            `json:"Principal"`
	Action    texts                 `json:"Action"`
	Resource  texts                 `json:"Resource"`
	Condition map[string]conditions `json:"Condition"` // by operator
}

// conditions are an operator's values by condition key: all keys must match,
// one value of each.
type conditions map[string]texts

// texts is a string or a list of them.
type texts []string

// UnmarshalJSON implements [json.Unmarshaler].
func (t *texts) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = texts{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

// principals are ARNs, or "*".
type principals []string

// UnmarshalJSON implements [json.Unmarshaler].
func (p *principals) UnmarshalJSON(data []byte) error {
	var all string
	if json.Unmarshal(data, &all) == nil {
		if all != "*" {
			return fmt.Errorf("principal %q", all)
		}
		*p = principals{"*"}
		return nil
	}
	var named struct {
		AWS texts `json:"AWS"`
	}
	if err := strict(data, &named); err != nil {
		return err
	}
	*p = principals(named.AWS)
	return nil
}

func strict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the end")
	}
	return nil
}

// operators say whether a condition holds for a key's values in the request,
// none when the key is absent. IAM user guide, "IAM JSON policy elements:
// Condition operators": a missing key matches no positive operator, and every
// negated one.
var operators = map[string]func(wanted, given []string) bool{
	"StringEquals":              func(w, g []string) bool { return anyEqual(w, g, equal) },
	"StringNotEquals":           func(w, g []string) bool { return !anyEqual(w, g, equal) },
	"StringEqualsIgnoreCase":    func(w, g []string) bool { return anyEqual(w, g, strings.EqualFold) },
	"StringNotEqualsIgnoreCase": func(w, g []string) bool { return !anyEqual(w, g, strings.EqualFold) },
	"Null":                      func(w, g []string) bool { return len(w) == 1 && (w[0] == "true") == (len(g) == 0) },
}

func equal(a, b string) bool { return a == b }

func anyEqual(wanted, given []string, same func(a, b string) bool) bool {
	return slices.ContainsFunc(given, func(g string) bool {
		return slices.ContainsFunc(wanted, func(w string) bool { return same(w, g) })
	})
}

// conditionKey are the keys that can be compared with: those of "Condition keys
// for AWS Nitro Enclaves" and of the encryption context, in KMS's developer
// guide.
var conditionKey = regexp.MustCompile(`^kms:(RecipientAttestation:(ImageSha384|PCR([0-9]|[12][0-9]|3[01]))|EncryptionContext:.+|EncryptionContextKeys)$`)

var (
	knownAction = regexp.MustCompile(`^kms:(\*|[A-Za-z]+\*?)$`)
	sha384Hex   = regexp.MustCompile(`^[0-9a-fA-F]{96}$`)
)

func parsePolicy(data []byte) (*policy, error) {
	var p policy
	if err := strict(data, &p); err != nil {
		return nil, fmt.Errorf("key policy: %w", err)
	}
	if p.Version != "2012-10-17" || len(p.Statement) == 0 {
		return nil, errors.New("key policy: want Version 2012-10-17 and a Statement")
	}
	for _, st := range p.Statement {
		if err := st.check(); err != nil {
			return nil, fmt.Errorf("key policy: statement %q: %w", st.Sid, err)
		}
	}
	return &p, nil
}

func (st *statement) check() error {
	switch {
	case st.Effect != "Allow" && st.Effect != "Deny":
		return fmt.Errorf("effect %q", st.Effect)
	case len(st.Principal) == 0:
		return errors.New("no principal")
	case !slices.Equal(st.Resource, texts{"*"}):
		return errors.New(`resource is not "*", which in a key policy is the key`)
	case len(st.Action) == 0:
		return errors.New("no action")
	}
	for _, action := range st.Action {
		if !knownAction.MatchString(action) {
			return fmt.Errorf("action %q", action)
		}
	}
	for operator, keys := range st.Condition {
		if operators[operator] == nil {
			return fmt.Errorf("operator %q is not known here", operator)
		}
		for name, values := range keys {
			if !conditionKey.MatchString(name) || len(values) == 0 {
				return fmt.Errorf("condition key %q is not known here, or has no value", name)
			}
			if operator == "Null" || !strings.HasPrefix(name, "kms:RecipientAttestation:") {
				continue
			}
			for _, v := range values {
				if !sha384Hex.MatchString(v) {
					return fmt.Errorf("%s %q is not a SHA-384 in hex", name, v)
				}
			}
		}
	}
	return nil
}

// call is what a policy is asked about.
type call struct {
	principal string // ARN
	action    string // "kms:Decrypt"
	values    map[string][]string
}

// allows says whether a statement allows the call and none denies it.
func (p *policy) allows(c call) bool {
	allowed := false
	for _, st := range p.Statement {
		if !st.matches(c) {
			continue
		}
		if st.Effect == "Deny" {
			return false
		}
		allowed = true
	}
	return allowed
}

func (st *statement) matches(c call) bool {
	if !slices.Contains(st.Principal, "*") && !slices.Contains(st.Principal, c.principal) {
		return false
	}
	if !slices.ContainsFunc(st.Action, func(a string) bool { return actionMatches(a, c.action) }) {
		return false
	}
	for operator, keys := range st.Condition {
		for name, wanted := range keys {
			if !operators[operator](wanted, c.values[strings.ToLower(name)]) {
				return false
			}
		}
	}
	return true
}

// actionMatches compares without regard to case, as IAM does; only a trailing
// star is a wildcard here.
func actionMatches(pattern, action string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(strings.ToLower(action), strings.ToLower(prefix))
	}
	return strings.EqualFold(pattern, action)
}
