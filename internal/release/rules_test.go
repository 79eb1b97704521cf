package release_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

// keyPolicy is a policy of either kind.
type keyPolicy interface{ JSON() ([]byte, error) }

// rulesOf names every rule of a policy that is made, of whatever it consists:
//
//	STATEMENT                        a statement that allows
//	STATEMENT/principal              for whom it does
//	STATEMENT/condition/KEY          under which condition; of a statement that denies: where it does not
//	STATEMENT/action/ACTION          an action that a statement denies
//
// Statements of releases have one name together.
func rulesOf(policy keyPolicy) []string {
	GinkgoHelper()
	text, err := policy.JSON()
	Expect(err).NotTo(HaveOccurred())
	var d document
	Expect(json.Unmarshal(text, &d)).To(Succeed())
	rules := map[string]bool{}
	for _, st := range d.Statement {
		name := ruleName(st)
		if st["Effect"] == "Allow" {
			rules[name], rules[name+"/principal"] = true, true
		} else {
			for _, action := range st["Action"].([]any) {
				rules[name+"/action/"+action.(string)] = true
			}
		}
		if st["Condition"] != nil {
			for _, keys := range st["Condition"].(map[string]any) {
				for key := range keys.(map[string]any) {
					rules[name+"/condition/"+key] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(rules))
}

func ruleName(st map[string]any) string {
	if sid := st["Sid"].(string); !strings.HasPrefix(sid, "Release") {
		return sid
	}
	return "Release"
}

// without takes one rule out of a policy.
func without(rule string) func(*document) {
	name, part, _ := strings.Cut(rule, "/")
	part, what, _ := strings.Cut(part, "/")
	return func(d *document) {
		for i, st := range d.Statement {
			if ruleName(st) != name {
				continue
			}
			switch part {
			case "":
				d.Statement[i] = nil
			case "principal":
				st["Principal"] = "*"
			case "action":
				st["Action"] = slices.DeleteFunc(st["Action"].([]any), func(a any) bool { return a == what })
			case "condition":
				for operator, keys := range st["Condition"].(map[string]any) {
					delete(keys.(map[string]any), what)
					if len(keys.(map[string]any)) == 0 {
						delete(st["Condition"].(map[string]any), operator)
					}
				}
			}
		}
		d.Statement = slices.DeleteFunc(d.Statement, func(st map[string]any) bool {
			actions, ok := st["Action"].([]any)
			return st == nil || ok && len(actions) == 0
		})
	}
}

// tried is a request that one rule decides on.
type tried struct {
	rule     string
	name     string
	releases func() []attest.Release // of the policy; nil: the one that runs
	call     func(ctx context.Context) error
	broad    bool // somebody has come to allow everything beside this policy
	allowed  bool // with the rule it is allowed, and without refused
}

// try wants a request to be decided by its rule, and by that alone.
func (t tried) try(ctx context.Context, w *softkmstest.World, policy func(...attest.Release) keyPolicy) {
	GinkgoHelper()
	releases := []attest.Release{running(w)}
	if t.releases != nil {
		releases = t.releases()
	}
	put := func(edits ...func(*document)) {
		putPolicy(w, policy(releases...), func(d *document) {
			for _, edit := range edits {
				edit(d)
			}
			if t.broad {
				d.Statement = append(d.Statement, map[string]any{"Sid": "Broad", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"})
			}
		})
	}
	refused, passes := "refused with the rule", "passes without it"
	if t.allowed {
		refused, passes = "refused without the rule", "passes with it"
	}
	if t.allowed {
		put(without(t.rule))
	} else {
		put()
	}
	err := t.call(ctx)
	Expect(err).To(HaveOccurred(), refused)
	Expect(err.Error()).To(Or(ContainSubstring("AccessDeniedException"), ContainSubstring("denied")), refused)
	if t.allowed {
		put()
	} else {
		put(without(t.rule))
	}
	Expect(t.call(ctx)).To(Succeed(), passes)
}

// changed is the release that runs, with another value of a register.
func changed(w *softkmstest.World, register int) attest.Release {
	r := running(w)
	r.PCRs[register] = attest.ExtendedPCR([]byte("another"))
	return r
}

// byRegisters are a request for each register that a release pins. Where the image is
// another release's, that one is trusted, too, with other registers: nothing but the one
// statement that is tried stands in the way.
func byRegisters(w *softkmstest.World, name string, call func(context.Context) error) (all []tried) {
	for register := range running(w).PCRs {
		rule, releases := fmt.Sprintf("Release/condition/kms:RecipientAttestation:PCR%d", register), []attest.Release{changed(w, register)}
		if register == 0 {
			other := changed(w, 1)
			other.PCRs[0] = running(w).PCRs[0]
			rule, releases = "Release/condition/kms:RecipientAttestation:ImageSha384", []attest.Release{changed(w, 0), other}
		}
		all = append(all, tried{rule: rule, name: name, releases: func() []attest.Release { return releases }, call: call})
	}
	return all
}

// aroundIt are requests that would go around a policy, each by whoever might want to.
func aroundIt(who map[string]softkms.Principal, call func(softkms.Principal, string) func(context.Context) error) (all []tried) {
	for name, principal := range who {
		for action, rule := range map[string]string{
			"Encrypt": "kms:Encrypt", "ReEncrypt": "kms:ReEncrypt*", "CreateGrant": "kms:CreateGrant",
			"GenerateDataKeyPair": "kms:GenerateDataKeyPair*", "GenerateDataKeyPairWithoutPlaintext": "kms:GenerateDataKeyPair*",
			"GenerateDataKeyWithoutPlaintext": "kms:GenerateDataKeyWithoutPlaintext",
		} {
			all = append(all, tried{rule: "NoWayAround/action/" + rule, name: action + " by " + name, call: call(principal, action), broad: true})
		}
	}
	return all
}

var _ = Describe("Every rule of a key's policy", func() {
	var w *softkmstest.World
	BeforeEach(func() {
		w = softkmstest.Start(GinkgoTB())
		w.AddPrincipal(adminPrincipal())
		w.AddPrincipal(otherPrincipal())
	})
	// attested does an operation as an enclave does it, with a document.
	attested := func(who softkms.Principal, action string, tied map[string]string) func(context.Context) error {
		return func(ctx context.Context) error {
			c := fromEnclave(w, who)
			arn := softkms.ARN(softkmstest.Region, keyID)
			if action == "GenerateDataKey" {
				_, _, err := c.GenerateDataKey(ctx, arn, tied)
				return err
			}
			_, blob, err := w.DataKey(keyID, tied)
			Expect(err).NotTo(HaveOccurred())
			_, err = c.DecryptBy(ctx, arn, blob, tied)
			return err
		}
	}
	bare := func(who softkms.Principal, action string, tied map[string]string) func(context.Context) error {
		return func(ctx context.Context) error { return callAs(ctx, w, who, action, tied) }
	}
	// check tries all requests, and wants no rule of the policy that none is for.
	check := func(ctx context.Context, policy func(...attest.Release) keyPolicy, all []tried) {
		GinkgoHelper()
		var decided []string
		for _, t := range all {
			By(t.rule + ": " + t.name)
			t.try(ctx, w, policy)
			decided = append(decided, t.rule)
		}
		slices.Sort(decided)
		Expect(slices.Compact(decided)).To(Equal(rulesOf(policy(running(w)))), "each rule decides on a request")
	}
	managing := func() []tried {
		return []tried{
			{rule: "Manage", name: "the administrator manages the key", call: bare(adminPrincipal(), "GetKeyPolicy", nil), allowed: true},
			{rule: "Manage/principal", name: "somebody else does not", call: bare(w.Tenant, "GetKeyPolicy", nil)},
		}
	}

	It("of a tenant decides on a request, which passes without it, or for which it is there", func(ctx SpecContext) {
		tied, others := map[string]string{"mrgc:tenant": "acme", "mrgc:request-id": "0f"}, map[string]string{"mrgc:tenant": "other"}
		all := append(managing(), []tried{
			{rule: "MakeDataKeys", name: "the tenant makes data keys", call: bare(w.Tenant, "GenerateDataKey", tied), allowed: true},
			{rule: "MakeDataKeys/principal", name: "the cluster's role makes none", call: bare(w.Enclave, "GenerateDataKey", tied)},
			{rule: "MakeDataKeys/principal", name: "the administrator makes none", call: bare(adminPrincipal(), "GenerateDataKey", tied)},
			{rule: "MakeDataKeys/condition/kms:EncryptionContext:mrgc:tenant", name: "the tenant makes none for another", call: bare(w.Tenant, "GenerateDataKey", others)},
			{rule: "Release", name: "the enclave decrypts", call: attested(w.Enclave, "Decrypt", tied), allowed: true},
			{rule: "Release/principal", name: "the same enclave on behalf of another role", call: attested(otherPrincipal(), "Decrypt", tied)},
			{rule: "Release/condition/kms:EncryptionContext:mrgc:tenant", name: "another tenant's data key", call: attested(w.Enclave, "Decrypt", others)},
			{
				rule: "NothingButTrustedReleases/condition/kms:RecipientAttestation:ImageSha384", name: "denies nothing to trusted images",
				call: attested(w.Enclave, "Decrypt", tied), allowed: true,
			},
			{rule: "NothingButTrustedReleases/action/kms:Decrypt", name: "no document", call: bare(w.Tenant, "Decrypt", tied), broad: true},
			{rule: "NothingButTrustedReleases/action/kms:Decrypt", name: "another image", call: attested(w.Enclave, "Decrypt", tied), broad: true, releases: func() []attest.Release { return []attest.Release{built(7)} }},
		}...)
		all = append(all, byRegisters(w, "an enclave with another", attested(w.Enclave, "Decrypt", tied))...)
		all = append(all, aroundIt(map[string]softkms.Principal{"the administrator": adminPrincipal(), "the tenant": w.Tenant, "the cluster's role": w.Enclave},
			func(who softkms.Principal, action string) func(context.Context) error { return bare(who, action, tied) })...)
		check(ctx, func(r ...attest.Release) keyPolicy { return policyFor(w, r...) }, all)
	})

	It("of a fleet does so, too", func(ctx SpecContext) {
		tied := map[string]string{"mrgc:fleet": "prod", "mrgc:region": "use1", "mrgc:epoch": "41020"}
		others := map[string]string{"mrgc:fleet": "test", "mrgc:region": "use1", "mrgc:epoch": "41020"}
		all := managing()
		for _, action := range []string{"GenerateDataKey", "Decrypt"} {
			all = append(all, []tried{
				{rule: "Release", name: "the enclave: " + action, call: attested(w.Enclave, action, tied), allowed: true},
				{rule: "Release/principal", name: "on behalf of another role: " + action, call: attested(otherPrincipal(), action, tied)},
				{rule: "Release/condition/kms:EncryptionContext:mrgc:fleet", name: "another fleet: " + action, call: attested(w.Enclave, action, others)},
				{
					rule: "NothingButTrustedReleases/condition/kms:RecipientAttestation:ImageSha384", name: "denies nothing to trusted images: " + action,
					call: attested(w.Enclave, action, tied), allowed: true,
				},
				{rule: "NothingButTrustedReleases/action/kms:" + action, name: "no document", call: bare(adminPrincipal(), action, tied), broad: true},
				{rule: "NothingButTrustedReleases/action/kms:" + action, name: "another image", call: attested(w.Enclave, action, tied), broad: true, releases: func() []attest.Release { return []attest.Release{built(7)} }},
			}...)
			all = append(all, byRegisters(w, "an enclave with another: "+action, attested(w.Enclave, action, tied))...)
		}
		all = append(all, aroundIt(map[string]softkms.Principal{"the administrator": adminPrincipal(), "the cluster's role": w.Enclave},
			func(who softkms.Principal, action string) func(context.Context) error { return bare(who, action, tied) })...)
		check(ctx, func(r ...attest.Release) keyPolicy {
			return release.FleetKeyPolicy{Releases: r, Fleet: "prod", Admins: []string{admin}, Cluster: []string{w.Enclave.ARN}}
		}, all)
	})
})

func otherPrincipal() softkms.Principal {
	return softkms.Principal{ARN: "arn:aws:iam::444455556666:role/other", Credentials: softkms.Credentials{AccessKeyID: "AKIAOTHER", SecretAccessKey: "other"}}
}
