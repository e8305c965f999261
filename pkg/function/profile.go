// SPDX-License-Identifier: Apache-2.0

package function

import (
	"errors"
	"fmt"

	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// checkProfile is Kanister's, with its texts. A kopia location passes here and is
// refused where the repository is opened, as in Kanister.
func checkProfile(p *param.Profile) error {
	if p == nil {
		return errors.New("Profile must be non-nil") // Kanister's text
	}
	switch p.Location.Type {
	case param.LocationTypeS3Compliant, param.LocationTypeGCS, param.LocationTypeAzure, param.LocationTypeKopia:
	default:
		return errors.New("Location type not supported") // Kanister's text
	}
	switch c := p.Credential; c.Type {
	case param.CredentialTypeKeyPair:
		switch {
		case c.KeyPair == nil:
			return errors.New("Empty KeyPair field") // Kanister's text
		case c.KeyPair.ID == "":
			return errors.New("Access key ID is not set") // Kanister's text
		case c.KeyPair.Secret == "":
			return errors.New("Secret access key is not set") // Kanister's text
		}
	case param.CredentialTypeSecret:
		// What is in it depends on the location: the repository looks at it.
	case param.CredentialTypeKopia:
		// Of use with a RepositoryServer that needs no bucket; else the repository refuses it.
		switch {
		case c.KopiaServerSecret == nil:
			return errors.New("Empty KopiaServerSecret field") // Kanister's text
		case c.KopiaServerSecret.Username == "":
			return errors.New("Kopia Username is not set") // Kanister's text
		case c.KopiaServerSecret.Password == "":
			return errors.New("Kopia UserPassphrase is not set") // Kanister's text
		case c.KopiaServerSecret.Hostname == "":
			return errors.New("Kopia Hostname is not set") // Kanister's text
		case c.KopiaServerSecret.Cert == "":
			return errors.New("Kopia TLSCert is not set") // Kanister's text
		}
	default:
		return fmt.Errorf("Unsupported type '%s' for credentials", c.Type) // Kanister's text
	}
	return nil
}

// validateProfile is checkProfile as the functions that make or measure a backup,
// and LocationDelete, word it.
func validateProfile(p *param.Profile) error {
	if err := checkProfile(p); err != nil {
		return fmt.Errorf("Failed to validate Profile: %w", err) // Kanister's text
	}
	return nil
}
