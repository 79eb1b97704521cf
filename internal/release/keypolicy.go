package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/mrgc/mrgc/internal/attest"
)

// KeyPolicy is the policy of a tenant's KMS key, by which KMS releases data keys
// to enclaves of trusted releases and to nobody else. All fields are required.
type KeyPolicy struct {
	Releases []attest.Release // that may decrypt
	Tenant   string           // data keys are for requests of this tenant
	Admins   []string         // ARNs of who manages the key: of these one can change this policy
	Clients  []string         // ARNs of who makes data keys: the tenant's own
	Cluster  []string         // ARNs of the roles on whose behalf enclaves ask: the GPU instances'
}

// tenantContext is the condition key of the tenant in the encryption context
// (docs/protocol.md, "Data keys of KMS").
const tenantContext = "kms:EncryptionContext:mrgc:tenant"

const attestation = "kms:RecipientAttestation:"

type policyDocument struct {
	Version   string
	Statement []statement
}

// statement is one of a key policy's.
type statement struct {
	Sid       string
	Effect    string
	Principal any
	Action    []string
	Resource  string
	Condition map[string]map[string][]string `json:",omitempty"` // operator → condition key → values
}

// kmsPCRs are the registers that KMS has a condition key for (AWS KMS developer
// guide, "Condition keys for AWS Nitro Enclaves").
var kmsPCRs = []int{0, 1, 2, 3, 4, 8}

var principal = regexp.MustCompile(`^arn:aws[a-z-]*:(iam|sts)::[0-9]{12}:(root|(role|user|assumed-role)/[^*]+)$`)

// JSON is the policy as PutKeyPolicy takes it.
func (p KeyPolicy) JSON() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("key policy: %w", err)
	}
	statements := []statement{
		{
			Sid: "Manage", Effect: "Allow", Principal: named(p.Admins), Resource: "*",
			// No use of the key, and no grants, which would let others use it.
			Action: []string{
				"kms:Describe*", "kms:Get*", "kms:List*", "kms:Put*", "kms:Update*", "kms:Enable*", "kms:Disable*",
				"kms:ReplicateKey", "kms:TagResource", "kms:UntagResource", "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion",
			},
		},
		{
			Sid: "MakeDataKeys", Effect: "Allow", Principal: named(p.Clients), Resource: "*", Action: []string{"kms:GenerateDataKey"},
			Condition: map[string]map[string][]string{"StringEquals": {tenantContext: {p.Tenant}}},
		},
	}
	var images []string
	for i, r := range p.Releases {
		images = append(images, r.PCRs[0].String())
		statements = append(statements, p.release(i, r))
	}
	statements = append(statements,
		// Whatever else this policy, or IAM's beside it, comes to allow.
		statement{
			Sid: "NothingButTrustedReleases", Effect: "Deny", Principal: "*", Resource: "*", Action: []string{"kms:Decrypt"},
			Condition: map[string]map[string][]string{"StringNotEqualsIgnoreCase": {attestation + "ImageSha384": images}},
		},
		// Who may encrypt can plant a data key that he knows; who may re-encrypt can
		// move one to a key with another policy; a grant goes past this policy.
		statement{
			Sid: "NoWayAround", Effect: "Deny", Principal: "*", Resource: "*",
			Action: []string{"kms:Encrypt", "kms:ReEncrypt*", "kms:CreateGrant", "kms:GenerateDataKeyPair*", "kms:GenerateDataKeyWithoutPlaintext"},
		},
	)
	out, err := json.MarshalIndent(policyDocument{Version: "2012-10-17", Statement: statements}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("key policy: %w", err)
	}
	return append(out, '\n'), nil
}

// release lets enclaves of one release decrypt: every register that the release
// pins must be as it says.
func (p KeyPolicy) release(i int, r attest.Release) statement {
	registers := map[string][]string{attestation + "ImageSha384": {r.PCRs[0].String()}}
	for index, value := range r.PCRs {
		if index != 0 { // which is the image's
			registers[attestation+"PCR"+strconv.Itoa(index)] = []string{value.String()}
		}
	}
	return statement{
		Sid: fmt.Sprintf("Release%dEntry%d", r.Version, i), Effect: "Allow", Principal: named(p.Cluster), Resource: "*", Action: []string{"kms:Decrypt"},
		Condition: map[string]map[string][]string{"StringEqualsIgnoreCase": registers, "StringEquals": {tenantContext: {p.Tenant}}},
	}
}

func named(arns []string) any { return map[string][]string{"AWS": arns} }

func (p KeyPolicy) check() error {
	for _, role := range []struct {
		name string
		arns []string
	}{{"administrator", p.Admins}, {"client", p.Clients}, {"cluster role", p.Cluster}} {
		if len(role.arns) == 0 {
			return fmt.Errorf("no %s", role.name)
		}
		for _, arn := range role.arns {
			if !principal.MatchString(arn) {
				return fmt.Errorf("%s %q: want the ARN of a role or user, arn:aws:iam::ACCOUNT:role/NAME", role.name, arn)
			}
		}
	}
	if p.Tenant == "" || len(p.Releases) == 0 {
		return errors.New("no tenant, or no release")
	}
	for _, r := range p.Releases {
		for index := range r.PCRs {
			if !slices.Contains(kmsPCRs, index) {
				return fmt.Errorf("release %q pins PCR%d, for which KMS has no condition", r.Name, index)
			}
		}
		if len(r.PCRs[0]) == 0 {
			return fmt.Errorf("release %q pins no PCR0", r.Name)
		}
	}
	return nil
}
