package softkms_test

import (
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/cms"
	"github.com/mrgc/mrgc/standin/softkms"
)

const (
	image = "kms:RecipientAttestation:ImageSha384"
	pcr3  = "kms:RecipientAttestation:PCR3"
)

// Each rule is tested as a pair: the very same call is denied with the rule in
// the key's policy, and allowed without it. So no denial is for another reason.
var _ = Describe("A key policy", func() {
	var w *world
	BeforeEach(func() { w = newWorld() })

	encryptionContext := map[string]string{"tenant": "acme", "request": "1"}
	dataKey := func(ctx SpecContext) []byte {
		GinkgoHelper()
		out, err := w.as(w.tenant, "us-east-1", nil).GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId: aws.String("mrk-pair"), KeySpec: types.DataKeySpecAes256, EncryptionContext: encryptionContext,
		})
		Expect(err).NotTo(HaveOccurred())
		return out.CiphertextBlob
	}
	otherPCR := attest.ExtendedPCR([]byte("another")).String()
	decryptAttested := func(ctx SpecContext, w *world, blob []byte) error {
		_, err := w.as(w.tenant, "us-east-1", nil).Decrypt(ctx, &kms.DecryptInput{
			CiphertextBlob: blob, EncryptionContext: encryptionContext, Recipient: recipient(w.document(ctx)),
		})
		return err
	}
	decryptInClear := func(ctx SpecContext, w *world, blob []byte) error {
		_, err := w.as(w.tenant, "us-east-1", nil).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: encryptionContext})
		return err
	}
	all := []string{"kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt", "kms:ReEncrypt*"}

	DescribeTable("denies by a rule that alone does it",
		func(ctx SpecContext, rule func(*world) []byte, without func(*world) []byte, attempt func(SpecContext, *world, []byte) error) {
			_, err := w.service.CreateKey("mrk-pair", statements(allow(nil, all...)))
			Expect(err).NotTo(HaveOccurred())
			blob := dataKey(ctx)
			Expect(w.service.PutKeyPolicy("mrk-pair", rule(w))).To(Succeed())
			Expect(code(attempt(ctx, w, blob))).To(Equal("AccessDeniedException"))
			Expect(w.lastEvent().Error).To(Equal("AccessDeniedException"))
			Expect(w.service.PutKeyPolicy("mrk-pair", without(w))).To(Succeed())
			Expect(code(attempt(ctx, w, blob))).To(BeEmpty())
		},
		Entry("another image",
			func(*world) []byte {
				return statements(allow(condition("StringEqualsIgnoreCase", image, otherPCR), "kms:Decrypt"))
			},
			func(*world) []byte { return statements(allow(nil, "kms:Decrypt")) }, decryptAttested),
		Entry("another image, when the right one is allowed in its place",
			func(*world) []byte {
				return statements(allow(condition("StringEqualsIgnoreCase", image, otherPCR), "kms:Decrypt"))
			},
			func(w *world) []byte {
				return statements(allow(condition("StringEqualsIgnoreCase", image, otherPCR, strings.ToUpper(w.pcrs[0].String())), "kms:Decrypt"))
			}, decryptAttested),
		Entry("another role of the parent, PCR3, beside the right image",
			func(w *world) []byte {
				return statements(allow(map[string]any{"StringEqualsIgnoreCase": map[string]any{image: w.pcrs[0].String(), pcr3: otherPCR}}, "kms:Decrypt"))
			},
			func(w *world) []byte {
				return statements(allow(map[string]any{"StringEqualsIgnoreCase": map[string]any{image: w.pcrs[0].String(), pcr3: w.pcrs[3].String()}}, "kms:Decrypt"))
			}, decryptAttested),
		Entry("another PCR2",
			func(*world) []byte {
				return statements(allow(condition("StringEquals", "kms:RecipientAttestation:PCR2", otherPCR), "kms:Decrypt"))
			},
			func(w *world) []byte {
				return statements(allow(condition("StringEquals", "kms:RecipientAttestation:PCR2", w.pcrs[2].String()), "kms:Decrypt"))
			}, decryptAttested),
		Entry("no document at all, where an image is wanted",
			func(w *world) []byte {
				return statements(allow(condition("StringEqualsIgnoreCase", image, w.pcrs[0].String()), "kms:Decrypt"))
			},
			func(*world) []byte { return statements(allow(nil, "kms:Decrypt")) }, decryptInClear),
		Entry("another image, by an explicit denial beside a broad allowance",
			func(*world) []byte {
				return statements(allow(nil, all...), deny(condition("StringNotEqualsIgnoreCase", image, otherPCR), "kms:Decrypt"))
			},
			func(*world) []byte { return statements(allow(nil, all...)) }, decryptAttested),
		Entry("no document, by an explicit denial of every other image",
			func(w *world) []byte {
				return statements(allow(nil, all...), deny(condition("StringNotEqualsIgnoreCase", image, w.pcrs[0].String()), "kms:Decrypt"))
			},
			func(*world) []byte { return statements(allow(nil, all...)) }, decryptInClear),
		Entry("no document, by a condition that there be one",
			func(*world) []byte {
				return statements(allow(nil, all...), deny(condition("Null", image, "true"), "kms:Decrypt"))
			},
			func(*world) []byte { return statements(allow(nil, all...)) }, decryptInClear),
		Entry("another encryption context",
			func(*world) []byte {
				return statements(allow(condition("StringEquals", "kms:EncryptionContext:tenant", "other"), "kms:Decrypt"))
			},
			func(*world) []byte {
				return statements(allow(condition("StringEquals", "kms:EncryptionContext:tenant", "acme"), "kms:Decrypt"))
			}, decryptInClear),
		Entry("an encryption context without a key that is wanted",
			func(*world) []byte {
				return statements(allow(condition("StringEquals", "kms:EncryptionContextKeys", "purpose"), "kms:Decrypt"))
			},
			func(*world) []byte {
				return statements(allow(condition("StringEquals", "kms:EncryptionContextKeys", "tenant"), "kms:Decrypt"))
			}, decryptInClear),
		Entry("somebody else",
			func(w *world) []byte { return statements(allowTo(w.nobody, "kms:Decrypt")) },
			func(w *world) []byte {
				return statements(allowTo(w.nobody, "kms:Decrypt"), allowTo(w.tenant, "kms:Decrypt"))
			}, decryptInClear),
		Entry("another action",
			func(*world) []byte { return statements(allow(nil, "kms:GenerateDataKey")) },
			func(*world) []byte { return statements(allow(nil, "kms:GenerateDataKey", "kms:Decrypt")) }, decryptInClear),
		Entry("Encrypt, which could plant a key that is known",
			func(*world) []byte { return statements(allow(nil, "kms:*"), deny(nil, "kms:Encrypt")) },
			func(*world) []byte { return statements(allow(nil, "kms:*")) },
			func(ctx SpecContext, w *world, _ []byte) error {
				_, err := w.as(w.tenant, "us-east-1", nil).Encrypt(ctx, &kms.EncryptInput{KeyId: aws.String("mrk-pair"), Plaintext: make([]byte, 32)})
				return err
			}),
		Entry("ReEncrypt",
			func(*world) []byte { return statements(allow(nil, "kms:*"), deny(nil, "kms:ReEncrypt*")) },
			func(*world) []byte { return statements(allow(nil, "kms:*")) }, reEncrypt(encryptionContext)),
		Entry("ReEncrypt to a key that does not allow it",
			func(*world) []byte { return statements(allow(nil, "kms:ReEncryptFrom")) },
			func(*world) []byte { return statements(allow(nil, "kms:ReEncryptFrom", "kms:ReEncryptTo")) }, reEncrypt(encryptionContext)),
		Entry("GenerateDataKey for another image",
			func(*world) []byte {
				return statements(allow(condition("StringEqualsIgnoreCase", image, otherPCR), "kms:GenerateDataKey"))
			},
			func(w *world) []byte {
				return statements(allow(condition("StringEqualsIgnoreCase", image, w.pcrs[0].String()), "kms:GenerateDataKey"))
			},
			func(ctx SpecContext, w *world, _ []byte) error {
				_, err := w.as(w.tenant, "us-east-1", nil).GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
					KeyId: aws.String("mrk-pair"), KeySpec: types.DataKeySpecAes256, Recipient: recipient(w.document(ctx)),
				})
				return err
			}),
	)

	DescribeTable("is refused when any of it is not understood",
		func(policy, reason string) {
			_, err := w.service.CreateKey("mrk-pair", []byte(policy))
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("a condition key with a slip", string(statements(allow(condition("StringEquals", "kms:RecipientAttestation:ImageSHA385", otherPCR), "kms:Decrypt"))), "is not known"),
		Entry("a register that is none", string(statements(allow(condition("StringEquals", "kms:RecipientAttestation:PCR32", otherPCR), "kms:Decrypt"))), "is not known"),
		Entry("a measurement that is none", string(statements(allow(condition("StringEquals", image, "ab"), "kms:Decrypt"))), "SHA-384"),
		Entry("an operator", string(statements(allow(condition("StringLike", image, otherPCR), "kms:Decrypt"))), "operator"),
		Entry("a resource", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:Decrypt","Resource":"arn:x"}]}`, "resource"),
		Entry("an unknown element", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","NotPrincipal":"*","Action":"kms:Decrypt","Resource":"*"}]}`, "unknown field"),
		Entry("no principal", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*"}]}`, "no principal"),
		Entry("a service as principal", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"x"},"Action":"kms:Decrypt","Resource":"*"}]}`, "unknown field"),
		Entry("an action of another service", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*"}]}`, "action"),
		Entry("another effect", `{"Version":"2012-10-17","Statement":[{"Effect":"Permit","Principal":"*","Action":"kms:Decrypt","Resource":"*"}]}`, "effect"),
		Entry("no statement", `{"Version":"2012-10-17","Statement":[]}`, "Statement"),
		Entry("data after the end", `{"Version":"2012-10-17","Statement":[]}{}`, "after the end"),
	)

	It("releases a key to the attested enclave only, and never in clear", func(ctx SpecContext) {
		_, err := w.service.CreateKey("mrk-pair", statements(allow(nil, "kms:GenerateDataKey"),
			allow(condition("StringEqualsIgnoreCase", image, w.pcrs[0].String()), "kms:Decrypt")))
		Expect(err).NotTo(HaveOccurred())
		made, err := w.as(w.tenant, "us-east-1", nil).GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId: aws.String(softkms.ARN("us-east-1", "mrk-pair")), KeySpec: types.DataKeySpecAes256, EncryptionContext: encryptionContext,
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(made.Plaintext).To(HaveLen(32))
		released, err := w.as(w.tenant, "us-west-2", nil).Decrypt(ctx, &kms.DecryptInput{ // a replica of the key
			CiphertextBlob: made.CiphertextBlob, EncryptionContext: encryptionContext, Recipient: recipient(w.document(ctx)),
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(released.Plaintext).To(BeEmpty())
		Expect(cms.Open(released.CiphertextForRecipient, w.key)).To(Equal(made.Plaintext))
		Expect(w.lastEvent()).To(Equal(softkms.Event{
			Action: "kms:Decrypt", Region: "us-west-2", Principal: w.tenant.ARN, Key: softkms.ARN("us-west-2", "mrk-pair"),
			Context: encryptionContext, PCR0: w.pcrs[0].String(),
		}))
	})
})

func allowTo(p softkms.Principal, actions ...string) map[string]any {
	st := allow(nil, actions...)
	st["Principal"] = map[string]any{"AWS": p.ARN}
	return st
}

func reEncrypt(context map[string]string) func(SpecContext, *world, []byte) error {
	return func(ctx SpecContext, w *world, blob []byte) error {
		_, err := w.as(w.tenant, "us-east-1", nil).ReEncrypt(ctx, &kms.ReEncryptInput{
			CiphertextBlob: blob, SourceEncryptionContext: context, DestinationKeyId: aws.String("mrk-pair"),
		})
		return err
	}
}
