package main

import (
	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/release"
)

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Set up the KMS keys that enclaves use", Args: cobra.NoArgs}
	cmd.AddCommand(keysPolicyCommand())
	return cmd
}

func keysPolicyCommand() *cobra.Command {
	var manifest, manifestKey string
	var policy release.KeyPolicy
	var fleet string
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write the policy of a tenant's KMS key, or of a fleet's",
		Long: `Policy writes a key policy for AWS KMS (PutKeyPolicy): the tenant makes data keys,
and KMS releases them to enclaves of the releases that a signed manifest trusts,
asked on behalf of the cluster's roles, and to nobody else. Nobody may encrypt,
re-encrypt or grant. Write it again when there is a new manifest, before the new
release is rolled out.

With --fleet it is the policy of the key of a fleet's seeds, in the cluster's account:
enclaves of those releases have seeds made and decrypted, and nobody else does either.

Whoever administers the key can change the policy, and read what is sealed by it.`,
		Example: `  mrgc keys policy --releases releases.signed.json --releases-key releases-signing.pub --tenant acme \
    --admin arn:aws:iam::111122223333:role/security --client arn:aws:iam::111122223333:role/app \
    --cluster-role arn:aws:iam::444455556666:role/mrgc-gpu-instance > policy.json
  aws kms put-key-policy --key-id mrk-… --policy file://policy.json
  mrgc keys policy --releases releases.signed.json --releases-key releases-signing.pub --fleet prod \
    --admin arn:aws:iam::444455556666:role/security --cluster-role arn:aws:iam::444455556666:role/mrgc-gpu-instance > fleet.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := readManifest(manifest, "--releases-key", manifestKey)
			if err != nil {
				return err
			}
			policy.Releases = m.Trusted()
			var text []byte
			if fleet != "" {
				text, err = release.FleetKeyPolicy{Releases: policy.Releases, Fleet: fleet, Admins: policy.Admins, Cluster: policy.Cluster}.JSON()
			} else {
				text, err = policy.JSON()
			}
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&manifest, "releases", "", "signed manifest of releases (mrgc releases sign)")
	f.StringVar(&manifestKey, "releases-key", "", "PEM file of the key that verifies it")
	f.StringVar(&policy.Tenant, "tenant", "", "the tenant whose requests the key is for")
	f.StringArrayVar(&policy.Admins, "admin", nil, "ARN of who manages the key; repeatable")
	f.StringArrayVar(&policy.Clients, "client", nil, "ARN of who runs mrgc connect: makes data keys; repeatable")
	f.StringArrayVar(&policy.Cluster, "cluster-role", nil, "ARN of the GPU instances' role; repeatable")
	f.StringVar(&fleet, "fleet", "", "the fleet whose seeds the key is for, in place of --tenant and --client")
	required(cmd, "releases", "releases-key", "admin", "cluster-role")
	cmd.MarkFlagsOneRequired("tenant", "fleet")
	cmd.MarkFlagsMutuallyExclusive("tenant", "fleet")
	cmd.MarkFlagsMutuallyExclusive("client", "fleet")
	cmd.MarkFlagsRequiredTogether("tenant", "client")
	return cmd
}
