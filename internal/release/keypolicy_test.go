package release_test

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

const admin = "arn:aws:iam::111122223333:role/admin"

// running is the release that this test's program is, in the role of the world's
// security module.
func running(w *softkmstest.World) attest.Release {
	return attest.Release{Version: 8, Name: "this", PCRs: maps.Clone(w.PCRs)}
}

func policyFor(w *softkmstest.World, releases ...attest.Release) release.KeyPolicy {
	return release.KeyPolicy{
		Releases: releases, Tenant: "acme", Admins: []string{admin}, Clients: []string{w.Tenant.ARN}, Cluster: []string{w.Enclave.ARN},
	}
}

// document is the policy, for a test to take something out.
type document struct {
	Version   string
	Statement []map[string]any
}

func (d *document) statement(sid string) map[string]any {
	GinkgoHelper()
	for _, st := range d.Statement {
		if strings.HasPrefix(st["Sid"].(string), sid) {
			return st
		}
	}
	Fail("no statement " + sid)
	return nil
}

// drop takes out a statement.
func (d *document) drop(sid string) {
	GinkgoHelper()
	d.statement(sid) // is there
	d.Statement = slices.DeleteFunc(d.Statement, func(st map[string]any) bool { return st["Sid"] == sid })
}

// keyID is the key's whose policies are tried.
const keyID = "mrk-tenant"

// putPolicy gives the key a policy, edited before; nil: as it is.
func putPolicy(w *softkmstest.World, policy interface{ JSON() ([]byte, error) }, edit func(*document)) {
	GinkgoHelper()
	text, err := policy.JSON()
	Expect(err).NotTo(HaveOccurred())
	var d document
	Expect(json.Unmarshal(text, &d)).To(Succeed())
	if edit != nil {
		edit(&d)
	}
	text, err = json.Marshal(d)
	Expect(err).NotTo(HaveOccurred())
	if _, err := w.CreateKey(keyID, text); err != nil {
		Expect(w.PutKeyPolicy(keyID, text)).To(Succeed())
	}
}

// fromEnclave is KMS as an enclave asks it, by a principal's credentials.
func fromEnclave(w *softkmstest.World, who softkms.Principal) *kms.Client {
	GinkgoHelper()
	c, err := kms.New(kms.Config{Region: softkmstest.Region, Dial: w.Dial, NSM: w.Module, Roots: w.Roots})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(c.CloseIdleConnections)
	c.SetCredentials(kms.Credentials(who.Credentials))
	return c
}

func condition(st map[string]any, operator string) map[string]any {
	GinkgoHelper()
	return st["Condition"].(map[string]any)[operator].(map[string]any)
}

var _ = Describe("The policy of a tenant's key", func() {
	var w *softkmstest.World
	tied := map[string]string{"mrgc:tenant": "acme", "mrgc:request-id": "0f"}
	BeforeEach(func() {
		w = softkmstest.Start(GinkgoTB())
		w.AddPrincipal(softkms.Principal{ARN: admin, Credentials: softkms.Credentials{AccessKeyID: "AKIAADMIN", SecretAccessKey: "admin"}})
	})

	decryptAs := func(ctx context.Context, who softkms.Principal, encryptionContext map[string]string) error {
		GinkgoHelper()
		c := fromEnclave(w, who)
		_, blob, err := w.DataKey(keyID, encryptionContext)
		Expect(err).NotTo(HaveOccurred())
		_, err = c.Decrypt(ctx, blob, encryptionContext)
		return err
	}
	call := func(ctx context.Context, who softkms.Principal, action string) error {
		GinkgoHelper()
		return callAs(ctx, w, who, action, tied)
	}

	It("lets the tenant make data keys, and enclaves of each trusted release have them", func(ctx SpecContext) {
		putPolicy(w, policyFor(w, built(7), running(w), built(9)), nil)
		Expect(call(ctx, w.Tenant, "GenerateDataKey")).To(Succeed())
		Expect(decryptAs(ctx, w.Enclave, tied)).To(Succeed())
	})

	// Each refusal is for one rule: without it the same call passes.
	DescribeTable("refuses an enclave",
		func(ctx SpecContext, policy func() release.KeyPolicy, without func(*document), encryptionContext map[string]string) {
			putPolicy(w, policy(), nil)
			Expect(decryptAs(ctx, w.Enclave, encryptionContext)).To(MatchError(kms.ErrDenied))
			putPolicy(w, policy(), without)
			Expect(decryptAs(ctx, w.Enclave, encryptionContext)).To(Succeed())
		},
		Entry("of another image", func() release.KeyPolicy { return policyFor(w, built(7)) }, func(d *document) {
			delete(d.statement("Release"), "Condition")
			d.drop("NothingButTrustedReleases")
		}, tied),
		Entry("of another image, though another statement allows it", func() release.KeyPolicy {
			return policyFor(w, built(7))
		}, func(d *document) {
			delete(d.statement("Release"), "Condition")
			condition(d.statement("NothingButTrustedReleases"), "StringNotEqualsIgnoreCase")["kms:RecipientAttestation:ImageSha384"] = w.PCRs[0].String()
		}, tied),
		Entry("of another image by its other registers", func() release.KeyPolicy {
			r := running(w)
			r.PCRs[2] = attest.ExtendedPCR([]byte("another"))
			return policyFor(w, r)
		}, func(d *document) {
			delete(condition(d.statement("Release"), "StringEqualsIgnoreCase"), "kms:RecipientAttestation:PCR2")
		}, tied),
		Entry("in another role, hence account", func() release.KeyPolicy {
			r := running(w)
			r.PCRs[3] = attest.ExtendedPCR([]byte("another"))
			return policyFor(w, r)
		}, func(d *document) {
			delete(condition(d.statement("Release"), "StringEqualsIgnoreCase"), "kms:RecipientAttestation:PCR3")
		}, tied),
		Entry("with a data key of another tenant", func() release.KeyPolicy { return policyFor(w, running(w)) }, func(d *document) {
			delete(d.statement("Release")["Condition"].(map[string]any), "StringEquals")
		}, map[string]string{"mrgc:tenant": "other"}),
		Entry("on behalf of another role", func() release.KeyPolicy {
			p := policyFor(w, running(w))
			p.Cluster = []string{"arn:aws:iam::444455556666:role/other"}
			return p
		}, func(d *document) {
			d.statement("Release")["Principal"] = map[string]any{"AWS": w.Enclave.ARN}
		}, tied),
	)

	It("follows the manifest: a release below the minimum is let down", func(ctx SpecContext) {
		m := &release.Manifest{Version: 1, MinVersion: 8, Releases: []attest.Release{running(w), built(9)}}
		putPolicy(w, policyFor(w, m.Trusted()...), nil)
		Expect(decryptAs(ctx, w.Enclave, tied)).To(Succeed())
		m.MinVersion = 9
		putPolicy(w, policyFor(w, m.Trusted()...), nil)
		Expect(decryptAs(ctx, w.Enclave, tied)).To(MatchError(kms.ErrDenied))
	})

	DescribeTable("refuses everybody",
		func(ctx SpecContext, who func() softkms.Principal, action string, without func(*document)) {
			putPolicy(w, policyFor(w, running(w)), nil)
			Expect(call(ctx, who(), action)).To(MatchError(ContainSubstring("AccessDeniedException")))
			putPolicy(w, policyFor(w, running(w)), func(d *document) {
				d.Statement = append(d.Statement, map[string]any{"Sid": "Broad", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"})
			})
			Expect(call(ctx, who(), action)).To(MatchError(ContainSubstring("AccessDeniedException")), "though somebody has come to allow everything")
			putPolicy(w, policyFor(w, running(w)), func(d *document) {
				d.Statement = append(d.Statement, map[string]any{"Sid": "Broad", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"})
				without(d)
			})
			Expect(call(ctx, who(), action)).To(Succeed())
		},
		Entry("to encrypt, the administrator too", func() softkms.Principal { return adminPrincipal() }, "Encrypt", func(d *document) { d.drop("NoWayAround") }),
		Entry("to encrypt, the tenant too", func() softkms.Principal { return w.Tenant }, "Encrypt", func(d *document) { d.drop("NoWayAround") }),
		Entry("to re-encrypt", func() softkms.Principal { return adminPrincipal() }, "ReEncrypt", func(d *document) { d.drop("NoWayAround") }),
		Entry("to decrypt without a document, the tenant too", func() softkms.Principal { return w.Tenant }, "Decrypt", func(d *document) { d.drop("NothingButTrustedReleases") }),
		Entry("to decrypt without a document, the cluster's role", func() softkms.Principal { return w.Enclave }, "Decrypt", func(d *document) { d.drop("NothingButTrustedReleases") }),
	)

	It("lets nobody but the tenant make data keys, and for its own requests only", func(ctx SpecContext) {
		putPolicy(w, policyFor(w, running(w)), nil)
		Expect(call(ctx, w.Enclave, "GenerateDataKey")).To(MatchError(ContainSubstring("AccessDeniedException")))
		Expect(call(ctx, adminPrincipal(), "GenerateDataKey")).To(MatchError(ContainSubstring("AccessDeniedException")))
		Expect(callAs(ctx, w, w.Tenant, "GenerateDataKey", map[string]string{"mrgc:tenant": "other"})).To(MatchError(ContainSubstring("AccessDeniedException")))
		Expect(call(ctx, w.Tenant, "GenerateDataKey")).To(Succeed())
	})

	DescribeTable("is not made", func(reason string, change func(*release.KeyPolicy)) {
		p := policyFor(w, built(7))
		_, err := p.JSON()
		Expect(err).NotTo(HaveOccurred())
		change(&p)
		_, err = p.JSON()
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without releases", "no release", func(p *release.KeyPolicy) { p.Releases = nil }),
		Entry("without a tenant", "no tenant", func(p *release.KeyPolicy) { p.Tenant = "" }),
		Entry("without an administrator, else nobody could ever change it", "no administrator", func(p *release.KeyPolicy) { p.Admins = nil }),
		Entry("without a client", "no client", func(p *release.KeyPolicy) { p.Clients = nil }),
		Entry("without a role of the cluster", "no cluster role", func(p *release.KeyPolicy) { p.Cluster = nil }),
		Entry("for everybody", `client "*"`, func(p *release.KeyPolicy) { p.Clients = []string{"*"} }),
		Entry("for a pattern", "want the ARN", func(p *release.KeyPolicy) { p.Cluster = []string{"arn:aws:iam::111122223333:role/*"} }),
		Entry("for a register that KMS does not compare", "PCR16", func(p *release.KeyPolicy) { p.Releases[0].PCRs[16] = attest.ExtendedPCR(nil) }),
		Entry("for a release without an image", "no PCR0", func(p *release.KeyPolicy) { delete(p.Releases[0].PCRs, 0) }),
	)
})

func adminPrincipal() softkms.Principal {
	return softkms.Principal{ARN: admin, Credentials: softkms.Credentials{AccessKeyID: "AKIAADMIN", SecretAccessKey: "admin"}}
}

// callAs makes one call by the SDK, without a recipient.
func callAs(ctx context.Context, w *softkmstest.World, who softkms.Principal, action string, encryptionContext map[string]string) (err error) {
	GinkgoHelper()
	client, id := w.Client(GinkgoTB(), who), aws.String(keyID)
	_, blob, err := w.DataKey(*id, encryptionContext)
	Expect(err).NotTo(HaveOccurred())
	switch action {
	case "GenerateDataKey":
		_, err = client.GenerateDataKey(ctx, &awskms.GenerateDataKeyInput{KeyId: id, KeySpec: types.DataKeySpecAes256, EncryptionContext: encryptionContext})
	case "Decrypt":
		_, err = client.Decrypt(ctx, &awskms.DecryptInput{CiphertextBlob: blob, EncryptionContext: encryptionContext})
	case "Encrypt":
		_, err = client.Encrypt(ctx, &awskms.EncryptInput{KeyId: id, Plaintext: make([]byte, 32), EncryptionContext: encryptionContext})
	case "CreateGrant":
		_, err = client.CreateGrant(ctx, &awskms.CreateGrantInput{KeyId: id, GranteePrincipal: aws.String(who.ARN), Operations: []types.GrantOperation{types.GrantOperationDecrypt}})
	case "GenerateDataKeyWithoutPlaintext":
		_, err = client.GenerateDataKeyWithoutPlaintext(ctx, &awskms.GenerateDataKeyWithoutPlaintextInput{KeyId: id, KeySpec: types.DataKeySpecAes256, EncryptionContext: encryptionContext})
	case "GenerateDataKeyPair":
		_, err = client.GenerateDataKeyPair(ctx, &awskms.GenerateDataKeyPairInput{KeyId: id, KeyPairSpec: types.DataKeyPairSpecEccNistP256, EncryptionContext: encryptionContext})
	case "GenerateDataKeyPairWithoutPlaintext":
		_, err = client.GenerateDataKeyPairWithoutPlaintext(ctx, &awskms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: id, KeyPairSpec: types.DataKeyPairSpecEccNistP256, EncryptionContext: encryptionContext})
	case "GetKeyPolicy":
		_, err = client.GetKeyPolicy(ctx, &awskms.GetKeyPolicyInput{KeyId: id})
	case "ReEncrypt":
		_, err = client.ReEncrypt(ctx, &awskms.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: encryptionContext, DestinationKeyId: id})
	default:
		Fail("nobody calls " + action + " here")
	}
	return err
}
