"""The configuration files of a GAN's networks."""

from sd_tf.checkpoints.config_files import Kind
from sd_tf.errors import naming
from sd_tf.gan.config import DiscriminatorConfig, GeneratorConfig, check_config


def _check(config, source):
    with naming(source):
        check_config(config)


GENERATOR = Kind(GeneratorConfig, {"_class_name": "GigaGANGenerator"}, {}, check=_check)
DISCRIMINATOR = Kind(DiscriminatorConfig, {"_class_name": "GigaGANDiscriminator"}, {}, check=_check)
