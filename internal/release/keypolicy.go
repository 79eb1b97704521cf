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
	if p.Tenant == "" {
		return nil, errors.New("key policy: no tenant")
	}
	if err := errors.Join(checkRole("client", p.Clients), checkUse(p.Admins, p.Cluster, p.Releases)); err != nil {
		return nil, fmt.Errorf("key policy: %w", err)
	}
	makes := statement{
		Sid: "MakeDataKeys", Effect: "Allow", Principal: named(p.Clients), Resource: "*", Action: []string{"kms:GenerateDataKey"},
		Condition: map[string]map[string][]string{"StringEquals": {tenantContext: {p.Tenant}}},
	}
	released := releasedTo(p.Releases, p.Cluster, []string{"kms:Decrypt"}, tenantContext, p.Tenant)
	return encodePolicy(append([]statement{managedBy(p.Admins), makes}, released...))
}

// FleetKeyPolicy is the policy of the KMS key of a fleet's seeds: enclaves of
// trusted releases have KMS make and decrypt them, and nobody else does either, so
// that there is no seed that anybody else knows. All fields are required.
type FleetKeyPolicy struct {
	Releases []attest.Release // of enclaves that may hold the fleet's keys
	Fleet    string           // seeds are for this fleet
	Admins   []string         // as in [KeyPolicy]
	Cluster  []string         // as in [KeyPolicy]
}

// fleetContext is the condition key of the fleet in the encryption context
// (docs/protocol.md, "Fleet keys").
const fleetContext = "kms:EncryptionContext:mrgc:fleet"

// JSON is the policy as PutKeyPolicy takes it.
func (p FleetKeyPolicy) JSON() ([]byte, error) {
	if p.Fleet == "" {
		return nil, errors.New("key policy: no fleet")
	}
	if err := checkUse(p.Admins, p.Cluster, p.Releases); err != nil {
		return nil, fmt.Errorf("key policy: %w", err)
	}
	released := releasedTo(p.Releases, p.Cluster, []string{"kms:GenerateDataKey", "kms:Decrypt"}, fleetContext, p.Fleet)
	return encodePolicy(append([]statement{managedBy(p.Admins)}, released...))
}

// managedBy lets administrators manage a key.
func managedBy(admins []string) statement {
	return statement{
		Sid: "Manage", Effect: "Allow", Principal: named(admins), Resource: "*",
		// No use of the key, and no grants, which would let others use it.
		Action: []string{
			"kms:Describe*", "kms:Get*", "kms:List*", "kms:Put*", "kms:Update*", "kms:Enable*", "kms:Disable*",
			"kms:ReplicateKey", "kms:TagResource", "kms:UntagResource", "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion",
		},
	}
}

// releasedTo lets enclaves of the releases use a key by these actions, in an
// encryption context with that value, and keeps everybody else from it.
func releasedTo(releases []attest.Release, cluster, actions []string, contextKey, value string) (statements []statement) {
	var images []string
	for i, r := range releases {
		images = append(images, r.PCRs[0].String())
		statements = append(statements, statement{
			Sid: fmt.Sprintf("Release%dEntry%d", r.Version, i), Effect: "Allow", Principal: named(cluster), Resource: "*", Action: actions,
			Condition: map[string]map[string][]string{"StringEqualsIgnoreCase": registers(r), "StringEquals": {contextKey: {value}}},
		})
	}
	return append(statements,
		// Whatever else this policy, or IAM's beside it, comes to allow.
		statement{
			Sid: "NothingButTrustedReleases", Effect: "Deny", Principal: "*", Resource: "*", Action: actions,
			Condition: map[string]map[string][]string{"StringNotEqualsIgnoreCase": {attestation + "ImageSha384": images}},
		},
		// Who may encrypt can plant a key that he knows; who may re-encrypt can
		// move one to a key with another policy; a grant goes past this policy.
		statement{
			Sid: "NoWayAround", Effect: "Deny", Principal: "*", Resource: "*",
			Action: []string{"kms:Encrypt", "kms:ReEncrypt*", "kms:CreateGrant", "kms:GenerateDataKeyPair*", "kms:GenerateDataKeyWithoutPlaintext"},
		},
	)
}

func encodePolicy(statements []statement) ([]byte, error) {
	out, err := json.MarshalIndent(policyDocument{Version: "2012-10-17", Statement: statements}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("key policy: %w", err)
	}
	return append(out, '\n'), nil
}

// registers are the conditions of one release: every register that it pins must be
// as it says.
func registers(r attest.Release) map[string][]string {
	registers := map[string][]string{attestation + "ImageSha384": {r.PCRs[0].String()}}
	for index, value := range r.PCRs {
		if index != 0 { // which is the image's
			registers[attestation+"PCR"+strconv.Itoa(index)] = []string{value.String()}
		}
	}
	return registers
}

func named(arns []string) any { return map[string][]string{"AWS": arns} }

func checkRole(name string, arns []string) error {
	if len(arns) == 0 {
		return fmt.Errorf("no %s", name)
	}
	for _, arn := range arns {
		if !principal.MatchString(arn) {
			return fmt.Errorf("%s %q: want the ARN of a role or user, arn:aws:iam::ACCOUNT:role/NAME", name, arn)
		}
	}
	return nil
}

func checkUse(admins, cluster []string, releases []attest.Release) error {
	if err := errors.Join(checkRole("administrator", admins), checkRole("cluster role", cluster)); err != nil {
		return err
	}
	if len(releases) == 0 {
		return errors.New("no release")
	}
	for _, r := range releases {
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
