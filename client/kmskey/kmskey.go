// Package kmskey makes a client's data keys with a tenant's key in AWS KMS:
//
//	key, err := kmskey.Open(ctx, "arn:aws:kms:us-east-1:111122223333:key/mrk-…")
//	c, err := client.New(client.Config{DataKeys: key, …})
//
// It needs kms:GenerateDataKey on that key, nothing else; `mrgc keys policy`
// writes the key's policy. It is apart from package client because of what it
// brings with it: the AWS SDK.
package kmskey

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Key is a key in KMS. It is safe for concurrent use.
type Key struct {
	client      *kms.Client
	arn, region string
}

// form is a key's ARN. An alias names no key for good, and no region that could
// be told from its key's id.
var form = regexp.MustCompile(`^arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:key/((?:mrk-)?[a-z0-9-]+)$`)

// Open finds credentials where the AWS SDK looks for them (environment, shared
// files, the machine's role), and uses the key in its ARN's region. It asks KMS
// for nothing yet.
func Open(ctx context.Context, arn string) (*Key, error) {
	region, err := regionOf(arn)
	if err != nil {
		return nil, err
	}
	account, err := config.LoadDefaultConfig(ctx, config.WithRegion(region))
	if err != nil {
		return nil, fmt.Errorf("KMS key: %w", err)
	}
	return New(kms.NewFromConfig(account), arn)
}

// New uses a client of KMS, of the ARN's region.
func New(client *kms.Client, arn string) (*Key, error) {
	region, err := regionOf(arn)
	if err != nil {
		return nil, err
	}
	return &Key{client: client, arn: arn, region: region}, nil
}

func regionOf(arn string) (string, error) {
	parts := form.FindStringSubmatch(arn)
	if parts == nil {
		return "", fmt.Errorf("KMS key %q: want arn:aws:kms:REGION:ACCOUNT:key/ID", arn)
	}
	return parts[1], nil
}

// Region implements client.DataKeys: empty for a multi-region key.
func (k *Key) Region() string {
	if strings.Contains(k.arn, ":key/mrk-") {
		return ""
	}
	return k.region
}

// Generate implements client.DataKeys by GenerateDataKey.
func (k *Key) Generate(ctx context.Context, encryptionContext map[string]string) (plaintext, ciphertext []byte, err error) {
	out, err := k.client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
		KeyId: aws.String(k.arn), KeySpec: types.DataKeySpecAes256, EncryptionContext: encryptionContext,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("KMS key %s: %w", k.arn, err)
	}
	return out.Plaintext, out.CiphertextBlob, nil
}
