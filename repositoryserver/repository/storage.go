// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/blob/s3"
	"github.com/minio/minio-go/v7"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver/config"
)

// openStorage connects to the place. A further kind of storage is one more case.
func openStorage(ctx context.Context, c config.Storage, create bool) (blob.Storage, error) {
	switch c.Type {
	case config.TypeS3:
		host, plain, err := c.Host()
		if err != nil {
			return nil, err
		}
		return s3.New(ctx, &s3.Options{
			BucketName: c.Bucket, Prefix: c.Prefix, Endpoint: host, Region: c.Region,
			AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken,
			DoNotUseTLS: plain, DoNotVerifyTLS: c.InsecureTLS, RootCA: []byte(c.CABundle),
		}, false)
	case config.TypeFilesystem:
		return filesystem.New(ctx, &filesystem.Options{Path: c.Path, FileMode: 0o600, DirectoryMode: 0o700}, create)
	default:
		return nil, fmt.Errorf("storage type %q is not supported yet", c.Type)
	}
}

// Names of the blobs that Kopia writes first. The second is written before the
// first, so alone it is a creation that was interrupted.
const (
	formatBlob     = "kopia.repository"
	blobConfigBlob = "kopia.blobcfg"
)

// contents is what lies below a prefix, as far as it matters.
type contents struct {
	repository  bool
	interrupted bool
	// other is the name of something else, if there is any.
	other string
}

// inspect looks without reading the whole list, which may be long.
func inspect(ctx context.Context, st blob.Storage, c config.Storage) (found contents, err error) {
	err = st.ListBlobs(ctx, "kopia.", func(m blob.Metadata) error {
		found.repository = found.repository || m.BlobID == formatBlob
		found.interrupted = found.interrupted || m.BlobID == blobConfigBlob
		return nil
	})
	if err != nil || found.repository {
		return found, err
	}
	enough := errors.New("enough")
	err = st.ListBlobs(ctx, "", func(m blob.Metadata) error {
		if m.BlobID == blobConfigBlob {
			return nil
		}
		found.other = string(m.BlobID)
		return enough
	})
	if err != nil && !errors.Is(err, enough) {
		return found, err
	}
	if found.other == "" && c.Type == config.TypeFilesystem {
		found.other, err = foreignFile(c.Path)
	}
	return found, err
}

// foreignFile names a file that Kopia's listing does not show.
func foreignFile(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		// Kopia's own, and what every ext4 volume has at its root.
		if n := e.Name(); n != ".shards" && n != "lost+found" && n != blobConfigBlob+".f" {
			return n, nil
		}
	}
	return "", err
}

// explain turns an error of the storage into one that says what to do.
func explain(ctx context.Context, c config.Storage, err error) error {
	p := &api.Problem{Code: api.CodeStorage, Title: fmt.Sprintf("open %s: %v", c, err)}
	var answer minio.ErrorResponse
	var untrusted x509.UnknownAuthorityError
	var wrongName x509.HostnameError
	var invalid x509.CertificateInvalidError
	var network net.Error
	switch {
	case errors.As(err, &answer):
		switch answer.Code {
		case minio.NoSuchBucket:
			p.Code, p.Hint = api.CodeStorageMissing, "create the bucket, or correct its name in the Profile"
		case minio.InvalidAccessKeyID, "SignatureDoesNotMatch":
			p.Code, p.Hint = api.CodeStorageDenied, "the access key id or the secret access key is wrong; correct the Profile's credentials"
		case minio.AccessDenied:
			p.Code, p.Hint = api.CodeStorageDenied, "the keys are known, but may not list, read and write this bucket and prefix; or the secret access key is wrong"
		case "ExpiredToken", "InvalidToken":
			p.Code, p.Hint = api.CodeStorageDenied, "the session token has expired; renew the Profile's credentials"
		}
	case errors.Is(err, blob.ErrInvalidCredentials):
		p.Code, p.Hint = api.CodeStorageDenied, "the session token has expired; renew the Profile's credentials"
	case errors.As(err, &untrusted), errors.As(err, &wrongName), errors.As(err, &invalid):
		p.Code, p.Hint = api.CodeStorageUntrusted, "give the CA bundle of the endpoint, and use a host name that its certificate carries"
	case errors.Is(err, fs.ErrNotExist) && c.Type == config.TypeFilesystem:
		p.Code, p.Hint = api.CodeStorageMissing, "the folder does not exist; is the volume mounted, and is it the right one?"
	case errors.Is(err, fs.ErrPermission) && c.Type == config.TypeFilesystem:
		p.Code, p.Hint = api.CodeStorageDenied, fmt.Sprintf("uid %d may not read and write the folder; set the pod's fsGroup", os.Getuid())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded), errors.As(err, &network):
		p.Code, p.Hint = api.CodeStorageUnreachable, "check the endpoint, DNS and the egress of the control plane's namespace"
	}
	return p
}
